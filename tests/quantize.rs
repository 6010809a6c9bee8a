//! `scrimp quantize` as a person or a script starts it: every architecture, every scheme, from both
//! kinds of file; refusals; interruptions at any moment.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use scrimp_checkpoint::Checkpoint;
use serde_json::Value;

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scrimp"));
    command
        .arg("quantize")
        .args(args)
        .env_remove("SCRIMP_MODEL");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// What a run that has to succeed printed with `--json`.
fn done(args: &[&str]) -> Value {
    let output = run(&[args, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refusal(args: &[&str]) -> String {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} was accepted");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn golden(name: &str) -> String {
    format!("{GOLDENS}/{name}")
}

/// A golden folder with a tokenizer of letters, whose ids every vocabulary has.
fn with_tokenizer(name: &str, folder: &Path) -> String {
    let to = folder.join(name);
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(golden(name)).unwrap() {
        let from = file.unwrap().path();
        let file = from.file_name().unwrap().to_str().unwrap();
        if file == "config.json" || file.starts_with("model") && !file.ends_with(".gguf") {
            fs::copy(&from, to.join(file)).unwrap();
        }
    }
    let letters = ('a'..='z').chain(['Ġ', '.']);
    let vocab: serde_json::Map<String, Value> = letters
        .enumerate()
        .map(|(id, c)| (c.to_string(), id.into()))
        .collect();
    let bytes = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    });
    fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    to.to_str().unwrap().to_owned()
}

/// A text that this tokenizer has tokens for.
fn text(folder: &Path) -> String {
    let words = ["the ", "cat ", "and a ", "dog ", "in an ", "old ", "hat. "];
    let text: String = (0..400)
        .map(|i| words[(i * i + i / 7) % words.len()])
        .collect();
    let path = folder.join("text.txt");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const SCHEMES: [&str; 6] = [
    "int8",
    "int8-a8",
    "int4-rtn",
    "int4-gptq",
    "int4-awq",
    "int4-awq-gptq",
];

#[test]
fn every_architecture_by_every_scheme() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    for name in [
        "llama",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v3_fp8",
    ] {
        let source = with_tokenizer(name, folder.path());
        for scheme in SCHEMES {
            let to = folder.path().join(format!("{name}-{scheme}"));
            let to = to.to_str().unwrap();
            let mut args = vec![source.as_str(), "-o", to, "--scheme", scheme];
            if scheme.starts_with("int4") {
                args.extend(["--group-size", "2", "--calibration", &text]);
                args.extend(["--samples", "6", "--seqlen", "48"]);
            }
            let report = done(&args);
            assert_eq!(report["scheme"], scheme);
            let tensors = report["tensors"].as_array().unwrap();
            let errors: Vec<f64> = tensors
                .iter()
                .map(|t| t["error"].as_f64().unwrap())
                .collect();
            assert!(
                errors.iter().all(|e| e.is_finite() && *e < 0.5),
                "{name} {scheme}: {errors:?}"
            );
            assert!(errors.iter().any(|e| *e > 0.0));
            let kept = |suffix: &str| {
                tensors
                    .iter()
                    .filter(|t| t["name"].as_str().unwrap().ends_with(suffix))
                    .all(|t| t["error"] == 0.0)
            };
            assert!(
                kept("kv_b_proj") && kept("mlp.gate") && kept("lm_head") && kept("embed_tokens")
            );
            let written = Checkpoint::open(Path::new(to)).unwrap();
            for (tensor, view) in written.tensors() {
                if view.dtype.is_float() {
                    let values = view.to_f32().unwrap();
                    assert!(
                        values.iter().all(|v| v.is_finite()),
                        "{name} {scheme}: {tensor}"
                    );
                }
            }
            let config: Value =
                serde_json::from_slice(&fs::read(Path::new(to).join("config.json")).unwrap())
                    .unwrap();
            assert_eq!(
                config["quantization_config"]["quant_method"],
                "compressed-tensors"
            );
            assert!(!Path::new(to).join(".scrimp-quantize").exists());
            let kl = divergence(to, &source, &text);
            println!("{name} {scheme}: {kl:.2e} nats");
            let most = if scheme.starts_with("int8") {
                0.03
            } else {
                0.7
            };
            assert!((0.0..most).contains(&kl), "{name} {scheme}: {kl} nats");
        }
    }
}

/// Mean divergence in nats of what was written from what it was made from, both as the engine
/// computes them.
fn divergence(model: &str, reference: &str, text: &str) -> f64 {
    let output = Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(["eval", model, "--reference", reference, "--text", text])
        .args(["--max-tokens", "100", "--window", "64", "--json"])
        .args(["--memory", "1GiB", "--precision", "exact"])
        .env_remove("SCRIMP_MODEL")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{model}: {said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["kl_mean"].as_f64().unwrap()
}

#[test]
fn what_is_quantized_is_not_quantized_again() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama_w4a16", "qwen3_awq", "llama_gptq_act_order"] {
        let source = with_tokenizer(name, folder.path());
        let again = folder.path().join("again");
        let said = refusal(&[&source, "-o", again.to_str().unwrap(), "--scheme", "int8"]);
        assert!(said.contains("quantized already"), "{said}");
        assert!(!again.exists(), "{name}");
    }
}

#[test]
fn gguf_files_give_the_same_as_their_folders() {
    let folder = tempfile::tempdir().unwrap();
    for (name, file) in [
        ("llama", "model.gguf"),
        ("deepseek_v2", "mla.gguf"),
        ("deepseek_v2", "legacy.gguf"),
    ] {
        let path = format!("{}/{file}", golden(name));
        if !Path::new(&path).exists() {
            continue;
        }
        let mut written = Vec::new();
        for (i, source) in [golden(name), path].iter().enumerate() {
            let to = folder.path().join(format!("{name}-{file}-{i}"));
            let to = to.to_str().unwrap().to_owned();
            done(&[
                source,
                "-o",
                &to,
                "--scheme",
                "int4-rtn",
                "--group-size",
                "2",
            ]);
            written.push(to);
        }
        let (a, b) = (
            Checkpoint::open(Path::new(&written[0])).unwrap(),
            Checkpoint::open(Path::new(&written[1])).unwrap(),
        );
        for (tensor, view) in a.tensors() {
            let other = b
                .get(tensor)
                .unwrap_or_else(|| panic!("{name}: no {tensor}"));
            assert_eq!(view.shape, other.shape, "{tensor}");
            if view.dtype.is_float() {
                let (x, y) = (view.to_f32().unwrap(), other.to_f32().unwrap());
                let close = |(x, y): (&f32, &f32)| (x - y).abs() <= 1e-2 * x.abs().max(1e-2);
                assert!(x.iter().zip(&y).all(close), "{name} {file}: {tensor}");
            } else {
                assert_eq!(view.bytes, other.bytes, "{name} {file}: {tensor}");
            }
        }
        assert_eq!(a.len(), b.len());
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_what_can() {
    let folder = tempfile::tempdir().unwrap();
    let (model, to) = (golden("llama"), folder.path().join("out"));
    let to = to.to_str().unwrap();
    let said = refusal(&[&model, "-o", to, "--scheme", "int4-rtn"]);
    assert!(
        said.contains("128 does not divide") && said.contains("-1 for one group a row"),
        "{said}"
    );
    let said = refusal(&[&model, "-o", to, "--scheme", "int8", "--format", "awq"]);
    assert!(said.contains("4 bits alone"), "{said}");
    let said = refusal(&[&model, "-o", to, "--scheme", "int8", "--ignore", "("]);
    assert!(said.contains("--ignore"), "{said}");
    let said = refusal(&[&model, "-o", to, "--scheme", "int8", "--ignore", "proj"]);
    assert!(said.contains("nothing is left"), "{said}");
    let said = refusal(&[&model, "-o", to, "--scheme", "int8", "--memory", "1MiB"]);
    assert!(
        said.contains("at its peak") && said.contains("It fits from --memory"),
        "{said}"
    );
    let said = refusal(&[&model, "-o", GOLDENS, "--scheme", "int8"]);
    assert!(said.contains("is not empty"), "{said}");
    assert!(!Path::new(to).exists());
}

#[test]
fn recipes_come_from_files_and_flags_go_before_them() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.json");
    let json =
        r#"{"scheme": "int4-rtn", "group_size": 4, "asymmetric": true, "ignore": ["down_proj"]}"#;
    fs::write(&recipe, json).unwrap();
    let to = folder.path().join("out");
    let report = done(&[
        &golden("llama"),
        "-o",
        to.to_str().unwrap(),
        "--recipe",
        recipe.to_str().unwrap(),
        "--ignore",
        "layers\\.0\\..*up_proj",
    ]);
    let kept = |name: &str| {
        let tensors = report["tensors"].as_array().unwrap();
        let tensor = tensors
            .iter()
            .find(|t| t["name"].as_str().unwrap().ends_with(name));
        tensor.unwrap()["error"] == 0.0
    };
    assert!(kept("layers.0.mlp.down_proj") && kept("layers.0.mlp.up_proj"));
    assert!(!kept("layers.1.mlp.up_proj") && !kept("layers.0.mlp.gate_proj"));
    fs::write(&recipe, r#"{"scheme": "int4-rtn", "groups": 4}"#).unwrap();
    let said = refusal(&[
        &golden("llama"),
        "-o",
        "x",
        "--recipe",
        recipe.to_str().unwrap(),
    ]);
    assert!(said.contains("groups"), "{said}");
}

/// Every file of a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.insert(path.file_name().unwrap().into(), fs::read(&path).unwrap());
        }
    }
    files
}

/// Kills a run after some time; whether it was still going.
fn killed(mut child: Child, after: Duration) -> bool {
    std::thread::sleep(after);
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

#[test]
fn killed_ten_times_at_any_moment_it_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let source = with_tokenizer("deepseek_v3", folder.path());
    let args = |to: &str| -> Vec<String> {
        let args = [
            &source,
            "-o",
            to,
            "--scheme",
            "int4-awq-gptq",
            "--group-size",
            "2",
            "--asymmetric",
            "--calibration",
            &text,
            "--samples",
            "24",
            "--seqlen",
            "64",
            "--threads",
            "2",
        ];
        args.map(String::from).to_vec()
    };
    let whole = folder.path().join("whole");
    let arguments = args(whole.to_str().unwrap());
    let started = Instant::now();
    done(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let took = started.elapsed();
    let wanted = contents(&whole);

    // Moments of the whole run in an order without one: run after run goes a little further.
    let to = folder.path().join("killed");
    let arguments = args(to.to_str().unwrap());
    let arguments: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .chain(["--resume"])
        .collect();
    let mut kills = 0;
    for i in 0..10u32 {
        let share = 0.05 + 0.9 * f64::from((i * 7 + 3) % 10) / 10.0;
        kills += u32::from(killed(
            command(&arguments).spawn().unwrap(),
            took.mul_f64(share),
        ));
        let there = if to.exists() {
            contents(&to)
        } else {
            Default::default()
        };
        for (name, bytes) in there {
            if name.extension().is_some_and(|e| e == "safetensors") {
                assert!(
                    wanted[&name] == bytes,
                    "{} is final and not whole",
                    name.display()
                );
            }
        }
    }
    assert!(kills > 0);
    done(&arguments);
    let found = contents(&to);
    assert_eq!(
        wanted.keys().collect::<Vec<_>>(),
        found.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &wanted {
        assert!(found[name] == *bytes, "{} differs", name.display());
    }
    // Once more: it is finished, and says the same.
    done(&arguments);
    // Other settings do not go on with it.
    let other: Vec<&str> = arguments
        .iter()
        .copied()
        .filter(|a| *a != "--asymmetric")
        .collect();
    let said = refusal(&other);
    assert!(said.contains("another quantization"), "{said}");
}

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let source = with_tokenizer("qwen3_moe", folder.path());
    let mut written = Vec::new();
    for threads in ["1", "2", "3"] {
        let to = folder.path().join(threads);
        done(&[
            &source,
            "-o",
            to.to_str().unwrap(),
            "--scheme",
            "int4-awq-gptq",
            "--group-size",
            "2",
            "--calibration",
            &text,
            "--samples",
            "8",
            "--seqlen",
            "40",
            "--threads",
            threads,
        ]);
        written.push(fs::read(to.join("model.safetensors")).unwrap());
    }
    assert!(written[0] == written[1] && written[1] == written[2]);
}

#[test]
fn experts_nobody_was_sent_to_are_calibrated_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.jsonl");
    fs::write(&path, "{\"text\": \"the cat and a dog in an old hat\"}\n").unwrap();
    let source = with_tokenizer("deepseek_v3", folder.path());
    let to = folder.path().join("out");
    let report = done(&[
        &source,
        "-o",
        to.to_str().unwrap(),
        "--scheme",
        "int4-gptq",
        "--group-size",
        "2",
        "--calibration",
        path.to_str().unwrap(),
        "--experts-only",
    ]);
    let tensors = report["tensors"].as_array().unwrap();
    let experts: Vec<&Value> = tensors
        .iter()
        .filter(|t| t["error"].as_f64().unwrap() > 0.0)
        .collect();
    assert!(
        experts
            .iter()
            .all(|t| t["name"].as_str().unwrap().contains(".experts."))
    );
    let down = |t: &&&Value| t["name"].as_str().unwrap().ends_with("down_proj");
    let downs: Vec<_> = experts.iter().filter(down).collect();
    assert!(
        downs
            .iter()
            .any(|t| t["note"].as_str().is_some_and(|n| n.contains("borrowed"))),
        "{downs:?}"
    );
    assert!(downs.iter().all(|t| t["error"].as_f64().unwrap() < 0.5));
}
