//! Encoding and decoding against Hugging Face's tokenizers and sentencepiece.

#![allow(clippy::unwrap_used)] // a helper of a test fails the test

mod support;

use proptest::prelude::*;
use scrimp_text::{GgufTokenizer, IncrementalDetokenizer, Tokenizer};
use serde::Deserialize;
use support::{Golden, JSON_FIXTURES, as_gguf, fixture, gguf_metadata, goldens, read};

/// Compares every text and reports all differences at once.
fn check<'t>(
    name: &str,
    tokenizer: &Tokenizer,
    cases: impl Iterator<Item = (&'t String, &'t Golden)>,
) {
    let mut differences = Vec::new();
    for (text, (ids, decoded, without_special)) in cases {
        let ours = tokenizer.encode(text, false).unwrap();
        let texts = [tokenizer.decode(ids, false), tokenizer.decode(ids, true)];
        if &ours != ids || [decoded, without_special] != [&texts[0], &texts[1]] {
            differences.push(format!(
                "{text:?}\n  golden {ids:?} {decoded:?} {without_special:?}\n  ours   {ours:?} {texts:?}"
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{name}: {}\n{}",
        differences.len(),
        differences.join("\n")
    );
}

#[test]
fn tokenizer_json_gives_the_ids_of_hugging_face() {
    let goldens = goldens();
    for name in JSON_FIXTURES {
        check(
            name,
            &fixture(name),
            goldens.texts.iter().zip(&goldens.goldens[name]),
        );
    }
}

#[test]
fn gguf_splitting_rules_give_the_same_ids() {
    let goldens = goldens();
    for (name, pre) in [("smollm", "smollm"), ("deepseek", "deepseek-v3")] {
        let tokenizer = Tokenizer::from_gguf(as_gguf(name, pre)).unwrap();
        check(
            name,
            &tokenizer,
            goldens.texts.iter().zip(&goldens.goldens[name]),
        );
    }
    // GGUF files say nothing of Qwen's NFC normalization; llama.cpp leaves it out, and so do we.
    let qwen = Tokenizer::from_gguf(as_gguf("qwen", "qwen2")).unwrap();
    let cases = goldens.texts.iter().zip(&goldens.goldens["qwen"]);
    check(
        "qwen",
        &qwen,
        cases.filter(|(text, golden)| **text == golden.1),
    );
}

#[derive(Deserialize)]
struct SentencePiece {
    tokens: Vec<String>,
    scores: Vec<f32>,
    token_types: Vec<i32>,
    /// What sentencepiece gives for each text; none where a text holds what it treats otherwise.
    ids: Vec<Option<Vec<u32>>>,
}

fn sentencepiece() -> (GgufTokenizer, Vec<Option<Vec<u32>>>) {
    let file: SentencePiece = serde_json::from_slice(&read("sentencepiece-gguf.json")).unwrap();
    let gguf = GgufTokenizer {
        model: "llama".into(),
        tokens: file.tokens,
        scores: file.scores,
        token_types: file.token_types,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..Default::default()
    };
    (gguf, file.ids)
}

#[test]
fn gguf_scores_give_the_ids_of_sentencepiece() {
    let (gguf, ids) = sentencepiece();
    let tokenizer = Tokenizer::from_gguf(gguf.clone()).unwrap();
    let goldens = goldens();
    let mut compared = 0;
    for (text, ids) in goldens.texts.iter().zip(ids) {
        let Some(ids) = ids else { continue };
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(&tokenizer.decode(&ids, true), text);
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], 1);

    let unprefixed = GgufTokenizer {
        add_space_prefix: Some(false),
        ..gguf
    };
    let tokenizer = Tokenizer::from_gguf(unprefixed).unwrap();
    let ids = tokenizer.encode(" a b", false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), " a b");
}

#[test]
fn smollm2_from_its_own_file() {
    let Some(path) = std::env::var_os("SCRIMP_SMOLLM2") else {
        eprintln!("SCRIMP_SMOLLM2 does not name SmolLM2's GGUF file: not checked");
        return;
    };
    let metadata = gguf_metadata(&std::fs::read(path).unwrap());
    let key = |name: &str| &metadata[&format!("tokenizer.ggml.{name}")];
    let types = key("token_type")
        .list()
        .iter()
        .map(|kind| kind.number() as i32);
    let tokenizer = Tokenizer::from_gguf(GgufTokenizer {
        model: key("model").text().into(),
        pre: Some(key("pre").text().into()),
        tokens: key("tokens").texts(),
        merges: key("merges").texts(),
        token_types: types.collect(),
        bos: Some(key("bos_token_id").number() as u32),
        eos: Some(key("eos_token_id").number() as u32),
        add_bos: Some(key("add_bos_token").number() != 0.0),
        ..Default::default()
    })
    .unwrap();
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(tokenizer.id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.eos(), [2, 0]);
    let cases: Vec<(String, Vec<u32>, String, String)> =
        serde_json::from_slice(&read("smollm2.json")).unwrap();
    let cases: Vec<(String, Golden)> = cases
        .into_iter()
        .map(|(text, ids, a, b)| (text, (ids, a, b)))
        .collect();
    check(
        "smollm2",
        &tokenizer,
        cases.iter().map(|(text, golden)| (text, golden)),
    );
}

fn library(name: &str) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(read(&format!("{name}.json"))).unwrap()
}

/// Text that is hard on splitters.
fn odd_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[a-e ]{1,6}",
        2 => "[ \t\r\n\u{a0}\u{3000}]{1,4}",
        2 => "[0-9.,'!<|>_-]{1,5}",
        1 => "[é漢か한ж😀\u{301}\u{0}ſ]{1,3}",
        1 => any::<char>().prop_map(String::from),
        1 => prop::sample::select(vec![
            "'ll", "'S", "<|im_end|>", "<think>", "</s>", "<｜User｜>", "the ", "▁", " 日本語",
        ]).prop_map(String::from),
    ];
    prop::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn encoding_equals_the_library(text in odd_text()) {
        thread_local! {
            static BOTH: Vec<(&'static str, Tokenizer, tokenizers::Tokenizer)> =
                JSON_FIXTURES.iter().map(|name| (*name, fixture(name), library(name))).collect();
        }
        BOTH.with(|both| {
            for (name, ours, theirs) in both {
                let golden = theirs.encode_fast(text.as_str(), false).unwrap();
                let ids = ours.encode(&text, false).unwrap();
                prop_assert_eq!(ids.as_slice(), golden.get_ids(), "{}", name);
            }
            Ok(())
        })?;
    }

    #[test]
    fn streamed_text_equals_the_whole(
        ids in prop::collection::vec(0u32..720, 0..40),
        skips_special in any::<bool>(),
    ) {
        thread_local! {
            static ALL: Vec<Tokenizer> = JSON_FIXTURES.iter().map(|name| fixture(name)).collect();
        }
        ALL.with(|all| {
            for tokenizer in all {
                let mut stream = IncrementalDetokenizer::new(tokenizer, skips_special);
                let mut text: String = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
                text += &stream.finish();
                prop_assert_eq!(text, tokenizer.decode(&ids, skips_special));
            }
            Ok(())
        })?;
    }

    #[test]
    fn byte_level_text_round_trips(text in odd_text()) {
        let tokenizer = fixture("smollm");
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false), text);
    }
}
