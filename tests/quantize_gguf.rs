//! `scrimp quantize --format gguf`: every architecture written, read back, and held against the same
//! quantization in another format.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use scrimp_checkpoint::Checkpoint;
use scrimp_engine::weights::spec::{Kind, WeightSpec, weight_specs};
use scrimp_engine::weights::{Scheme, Slot};
use scrimp_model::{MetaValue, ModelConfig};
use scrimp_tensor::DType;
use serde_json::{Value, json};

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scrimp"));
    command.args(args).env_remove("SCRIMP_MODEL");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn done(args: &[&str]) -> String {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(args: &[&str]) -> String {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} was accepted");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A golden's configuration with widths of whole blocks.
fn config(name: &str) -> Value {
    let json = fs::read(format!("{GOLDENS}/{name}/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&json).unwrap();
    let fields = config.as_object_mut().unwrap();
    for (key, value) in [
        ("hidden_size", 64),
        ("intermediate_size", 96),
        ("moe_intermediate_size", 32),
        ("q_lora_rank", 32),
        ("kv_lora_rank", 32),
        ("qk_nope_head_dim", 24),
        ("qk_rope_head_dim", 8),
        ("v_head_dim", 16),
        ("head_dim", 16),
    ] {
        if fields.get(key).is_some_and(|v| !v.is_null()) {
            fields.insert(key.into(), value.into());
        }
    }
    for (key, value) in [
        ("vocab_size", 300),
        ("bos_token_id", 256),
        ("eos_token_id", 257),
    ] {
        fields.insert(key.into(), value.into());
    }
    config
}

/// Noise that is the same everywhere.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A model of noise in F16, with a byte-level tokenizer: a folder.
fn model(name: &str, folder: &Path) -> String {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    let json = config(name);
    let config = ModelConfig::from_hf(&json).unwrap();
    let mut noise = Noise(7);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for spec in weight_specs(&config, Scheme::HuggingFace, &|_| false) {
        let (scale, centre) = match spec.kind {
            Kind::Matrix { cols, .. } | Kind::FloatMatrix { cols, .. } => {
                (2.0 / (cols as f32).sqrt(), 0.0)
            }
            Kind::Vector { .. } if spec.tensor.contains("norm") => (0.2, 1.0),
            Kind::Vector { .. } => (0.1, 0.0),
        };
        let begin = data.len();
        for _ in 0..spec.kind.len() {
            let value = half::f16::from_f32(noise.next() * scale + centre);
            data.extend_from_slice(&value.to_le_bytes());
        }
        let entry = json!({"dtype": "F16", "shape": spec.shape,
                           "data_offsets": [begin, data.len()]});
        header.insert(spec.tensor, entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.append(&mut data);
    fs::write(folder.join("model.safetensors"), file).unwrap();
    fs::write(folder.join("config.json"), json.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let about = json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"});
    fs::write(folder.join("tokenizer_config.json"), about.to_string()).unwrap();
    folder.to_str().unwrap().to_owned()
}

/// Every byte, two special tokens and one merge.
fn tokenizer() -> Value {
    let printable = (33..=126).chain(161..=172).chain(174..=255u32);
    let others = (0..256u32).filter(|b| !printable.clone().any(|p| p == *b));
    let letters = printable
        .clone()
        .chain(others.enumerate().map(|(i, _)| 256 + i as u32));
    let letters = letters.filter_map(char::from_u32).map(String::from);
    let vocab: serde_json::Map<String, Value> = letters
        .zip(0..256)
        .chain([("th".to_owned(), 258)])
        .map(|(letter, id)| (letter, id.into()))
        .collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                       "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": [["t", "h"]],
        },
    })
}

fn text(folder: &Path) -> String {
    let words = ["the ", "cat ", "and a ", "dog ", "in an ", "old ", "hat. "];
    let text: String = (0..300)
        .map(|i| words[(i * i + i / 7) % words.len()])
        .collect();
    let path = folder.join("text.txt");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Mean divergence and agreement of two models on a text, activations in floats.
fn divergence(model: &str, reference: &str, text: &str) -> (f64, f64) {
    let said = done(&[
        "eval",
        model,
        "--reference",
        reference,
        "--text",
        text,
        "--window",
        "64",
        "--max-tokens",
        "256",
        "--precision",
        "exact",
        "--json",
    ]);
    let report: Value = serde_json::from_str(&said).unwrap();
    let number = |key: &str| {
        report[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} of {said}"))
    };
    (number("kl_mean"), number("top1_agreement"))
}

/// A folder in compressed-tensors and a GGUF file of the same settings.
fn both(source: &str, to: &Path, settings: &[&str]) -> (String, String) {
    fs::create_dir_all(to).unwrap();
    let name = |name: &str| to.join(name).to_str().unwrap().to_owned();
    let (folder, file) = (name("packed"), name("model.gguf"));
    for (to, format) in [(&folder, "compressed-tensors"), (&file, "gguf")] {
        let start = [
            "quantize",
            source,
            "-o",
            to,
            "--group-size",
            "32",
            "--format",
            format,
        ];
        done(&[&start[..], settings].concat());
    }
    (folder, file)
}

/// The values of a weight in a GGUF file: the rows of its tensor that are its own.
fn stored(file: &Checkpoint, spec: &WeightSpec) -> Vec<f32> {
    let view = file.get(&spec.tensor).unwrap();
    assert_eq!(view.shape, spec.shape, "{}", spec.tensor);
    let cols = *view.shape.last().unwrap();
    let all = view.to_f32().unwrap();
    let first = spec.first_row * cols;
    all[first..first + spec.kind.len()].to_vec()
}

/// The values of a weight in a folder of compressed-tensors.
fn unpacked(folder: &Checkpoint, spec: &WeightSpec, bits: usize) -> Vec<f32> {
    let module = spec.tensor.strip_suffix(".weight").unwrap_or(&spec.tensor);
    let part = |name: &str| folder.get(&format!("{module}.{name}"));
    let (Some(packed), Some(scales)) = (part("weight_packed"), part("weight_scale")) else {
        return folder.get(&spec.tensor).unwrap().to_f32().unwrap();
    };
    let word = |bytes: &[u8], i: usize| u32::from_le_bytes(bytes[4 * i..][..4].try_into().unwrap());
    let code = |bytes: &[u8], row: usize, words: usize, i: usize| {
        word(bytes, row * words + i * bits / 32) >> (i * bits % 32) & ((1 << bits) - 1)
    };
    let scales_of = scales.to_f32().unwrap();
    let (rows, groups) = (scales.shape[0], scales.shape[1]);
    let zeros = part("weight_zero_point");
    let mut values = Vec::new();
    for row in 0..rows {
        for col in 0..groups * 32 {
            let group = col / 32;
            let zero = zeros.as_ref().map_or(1 << (bits - 1), |zeros| {
                // Packed along the rows: word `row / per` of column `group`.
                let per = 32 / bits;
                word(zeros.bytes, row / per * groups + group) >> (row % per * bits)
                    & ((1 << bits) - 1)
            });
            let code = code(packed.bytes, row, packed.shape[1], col);
            values.push((code as f32 - zero as f32) * scales_of[row * groups + group]);
        }
    }
    values
}

/// The root mean square of the difference by that of the values.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|v| f64::from(v).powi(2)).sum()
    };
    let apart = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (apart / squares(&mut b.iter().copied())).sqrt()
}

/// Whether the format keeps a weight's rows in another order.
fn is_rearranged(config: &ModelConfig, slot: Slot) -> bool {
    let llama = config.architecture == scrimp_model::Architecture::Llama;
    slot == Slot::KvB || llama && matches!(slot, Slot::Q | Slot::K | Slot::QBias | Slot::KBias)
}

const MODELS: [&str; 7] = [
    "llama",
    "llama_rope_llama3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
];

#[test]
fn every_architecture_holds_what_compressed_tensors_holds() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    for name in MODELS {
        let source = model(name, folder.path());
        let config = ModelConfig::from_hf(&config(name)).unwrap();
        for (settings, bits, dtype) in [
            (&["--scheme", "int4-rtn"][..], 4, DType::Q4_0),
            (&["--scheme", "int4-rtn", "--asymmetric"], 4, DType::Q4_1),
            (&["--scheme", "int8"], 8, DType::Q8_0),
            (
                &[
                    "--scheme",
                    "int4-gptq",
                    "--calibration",
                    &text,
                    "--samples",
                    "4",
                    "--seqlen",
                    "64",
                ],
                4,
                DType::Q4_0,
            ),
        ] {
            let to = folder
                .path()
                .join(format!("{name}{}", settings.concat().replace('/', "")));
            let (packed, file) = both(&source, &to, settings);
            let (folder, written) = (
                Checkpoint::open(Path::new(&packed)).unwrap(),
                Checkpoint::open(Path::new(&file)).unwrap(),
            );
            let ours = weight_specs(&config, Scheme::Gguf, &|tensor| written.contains(tensor));
            let theirs = weight_specs(&config, Scheme::HuggingFace, &|_| false);
            let mut blocks = 0;
            for theirs in theirs.iter().filter(|s| !is_rearranged(&config, s.id.slot)) {
                let ours = ours.iter().find(|s| s.id == theirs.id).unwrap();
                let kept = written.get(&ours.tensor).unwrap().dtype;
                assert!(kept == dtype || !kept.is_block(), "{}", ours.tensor);
                blocks += usize::from(kept == dtype);
                let (a, b) = (stored(&written, ours), unpacked(&folder, theirs, bits));
                assert_eq!(a.len(), b.len(), "{}", ours.tensor);
                let fits = match kept {
                    // Scales with a sign make other grids, whose values are near these.
                    DType::Q4_0 => distance(&a, &b) < 0.25,
                    // A minimum is rounded to F16: by 2⁻¹² of at most 15 steps.
                    DType::Q4_1 => a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 2e-3),
                    _ => a == b,
                };
                assert!(fits, "{name} {settings:?}: {}", ours.tensor);
            }
            assert!(blocks > 0);
            // The rest, and what the keys and the tokenizer say, shows in what it computes.
            if dtype == DType::Q4_0 {
                let (kl, _) = divergence(&file, &source, &text);
                let (packed_kl, _) = divergence(&packed, &source, &text);
                assert!(
                    kl < 1.5 * packed_kl,
                    "{name} {settings:?}: {kl}, {packed_kl}"
                );
                continue;
            }
            let (kl, agreement) = divergence(&file, &packed, &text);
            let most = if dtype == DType::Q4_1 { 1e-5 } else { 1e-8 };
            assert!(kl.abs() < most, "{name} {settings:?}: {kl}");
            assert!(agreement > 0.99, "{name} {settings:?}: {agreement}");
        }
    }
}

#[test]
fn scaled_channels_are_folded_into_norms_and_rows_in_their_new_order() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    for name in ["llama", "deepseek_v3"] {
        let source = model(name, folder.path());
        let calibrated = |scheme: &'static str| {
            vec![
                "--scheme",
                scheme,
                "--calibration",
                &text,
                "--samples",
                "6",
                "--seqlen",
                "64",
            ]
        };
        let to = |what: &str| folder.path().join(format!("{name}-{what}"));
        let settings = calibrated("int4-awq-gptq");
        let (packed, file) = both(&source, &to("awq"), &settings);
        // Norms stay in F32 in one of them, so that codes differ here and there.
        let (own, _) = divergence(&file, &source, &text);
        let (other, _) = divergence(&packed, &source, &text);
        assert!(
            own < 1.5 * other,
            "{name}: {own}, in the other format {other}"
        );
        let (_, plain) = both(&source, &to("rtn"), &["--scheme", "int4-rtn"]);
        let (rounded, _) = divergence(&plain, &source, &text);
        assert!(own < rounded, "{name}: {own}, rounded to nearest {rounded}");
    }
}

#[test]
fn a_gguf_source_keeps_its_keys_and_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    for name in ["llama", "llama_rope_llama3", "deepseek_v3"] {
        let source = model(name, folder.path());
        let path = |what: &str| {
            let path = folder.path().join(format!("{name}-{what}.gguf"));
            path.to_str().unwrap().to_owned()
        };
        let (first, second) = (path("q8"), path("q4"));
        done(&[
            "quantize", &source, "-o", &first, "--scheme", "int8", "--format", "gguf",
        ]);
        done(&[
            "quantize", &first, "-o", &second, "--scheme", "int4-rtn", "--format", "gguf",
        ]);
        let open = |path: &str| Checkpoint::open(Path::new(path)).unwrap();
        let (first_file, second_file) = (open(&first), open(&second));
        let (a, b) = (
            first_file.metadata().unwrap(),
            second_file.metadata().unwrap(),
        );
        assert_eq!(a.len(), b.len());
        for (key, value) in a.iter() {
            match key {
                "general.file_type" => {
                    assert_eq!(value, &MetaValue::Unsigned(7));
                    assert_eq!(b.get(key), Some(&MetaValue::Unsigned(2)));
                }
                _ => assert_eq!(b.get(key), Some(value), "{key}"),
            }
        }
        assert!(
            a.text("tokenizer.chat_template")
                .unwrap()
                .contains("m.role")
        );
        assert_eq!(a.text("tokenizer.ggml.pre"), Some("gpt-2"));
        assert_eq!(a.unsigned("tokenizer.ggml.padding_token_id"), Some(257));
        let names = |file: &Checkpoint| -> Vec<String> {
            file.infos().map(|(_, info)| info.name.clone()).collect()
        };
        assert_eq!(names(&first_file), names(&second_file));
        let (kl, _) = divergence(&first, &source, &text);
        // A router near a tie may choose otherwise.
        assert!(kl < 5e-3, "{name}: {kl}");
        let (kl, _) = divergence(&second, &source, &text);
        assert!(kl < 0.5, "{name}: {kl}");
    }
}

#[test]
fn what_gguf_cannot_hold_is_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let source = model("deepseek_v3", folder.path());
    let to = folder.path().join("out.gguf");
    let to = to.to_str().unwrap();
    let refused = |source: &str, settings: &[&str]| {
        let start = ["quantize", source, "-o", to, "--format", "gguf", "--scheme"];
        refusal(&[&start[..], settings].concat())
    };
    let said = refused(&source, &["int4-rtn", "--group-size", "64"]);
    assert!(said.contains("pass --group-size 32"), "{said}");
    let said = refused(&source, &["int8-a8"]);
    assert!(said.contains("--scheme int8"), "{said}");
    let said = refused(&source, &["int8", "--asymmetric"]);
    assert!(said.contains("--asymmetric"), "{said}");
    let said = refused(&source, &["int8", "--ignore", "experts.3.up_proj"]);
    assert!(
        said.contains("ffn_up_exps") && said.contains("all or none"),
        "{said}"
    );
    let said = refused(&format!("{GOLDENS}/deepseek_v3"), &["int8"]);
    assert!(said.contains("which does not divide the"), "{said}");
    let said = refused("ponder", &["int8"]);
    assert!(said.contains("tokenizer.ggml.pre"), "{said}");
    assert!(!Path::new(to).exists());
    fs::write(to, "mine").unwrap();
    let said = refused(&source, &["int8"]);
    assert!(said.contains("is there already"), "{said}");
    assert_eq!(fs::read(to).unwrap(), b"mine");
}

#[test]
fn killed_and_resumed_it_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let source = model("deepseek_v3", folder.path());
    let settings = [
        "--scheme",
        "int4-awq-gptq",
        "--format",
        "gguf",
        "--calibration",
        &text,
        "--samples",
        "24",
        "--seqlen",
        "96",
        "--threads",
        "2",
    ];
    let start = |to: &str| -> Vec<String> {
        let all = [&["quantize", &source, "-o", to], &settings[..]].concat();
        all.into_iter().map(String::from).collect()
    };
    let run_all = |args: &[String]| done(&args.iter().map(String::as_str).collect::<Vec<_>>());
    // In a folder of its own, and as a file among others.
    for (whole, killed, file) in [("whole", "killed", "/model.gguf"), ("w.gguf", "k.gguf", "")] {
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (whole, to) = (path(whole), path(killed));
        let began = Instant::now();
        run_all(&start(&whole));
        let took = began.elapsed();
        let mut again = start(&to);
        again.push("--resume".into());
        let last = format!("{to}{file}");
        for share in [0.5, 0.25, 0.75, 0.9] {
            let again: Vec<&str> = again.iter().map(String::as_str).collect();
            let mut child = command(&again).spawn().unwrap();
            std::thread::sleep(took.mul_f64(share).max(Duration::from_millis(5)));
            let running = child.try_wait().unwrap().is_none();
            child.kill().unwrap();
            child.wait().unwrap();
            // Nothing half written has the file's name.
            if running && Path::new(&last).exists() {
                assert!(fs::read(&last).unwrap() == fs::read(format!("{whole}{file}")).unwrap());
            }
        }
        run_all(&again);
        let (a, b) = (
            fs::read(format!("{whole}{file}")).unwrap(),
            fs::read(&last).unwrap(),
        );
        assert!(a == b, "the file differs");
        // Once more, it says the same and leaves everything.
        run_all(&again);
        let parent = Path::new(&last).parent().unwrap();
        let left = fs::read_dir(parent).unwrap().flatten();
        for entry in left {
            let name = entry.file_name().to_string_lossy().into_owned();
            assert!(
                !name.contains("partial") && !name.contains("scrimp-quantize"),
                "{name}"
            );
        }
    }
}
