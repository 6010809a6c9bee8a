//! What tokenizers do with long texts and broken files.

#![allow(clippy::unwrap_used)] // a helper of a test fails the test

mod support;

use scrimp_text::{GgufTokenizer, MAX_PIECE_BYTES, Tokenizer, TokenizerConfig, TokenizerError};
use serde_json::{Value, json};
use support::{JSON_FIXTURES, as_gguf, fixture, read};

const TEN_MB: usize = 10_000_000;
const FOUR_MB: usize = 4_000_000;

#[test]
fn ten_megabytes_are_refused_at_the_token_limit() {
    for name in JSON_FIXTURES {
        let tokenizer = fixture(name);
        for unit in ["a", " ", "\n ", "漢", "<|", "the "] {
            let text = unit.repeat(TEN_MB / unit.len());
            let error = tokenizer.encode_within(&text, false, 5000).unwrap_err();
            assert!(
                matches!(error, TokenizerError::TooManyTokens { limit: 5000, .. }),
                "{error}"
            );
        }
    }
}

#[test]
fn text_without_a_place_to_split_takes_linear_time() {
    for name in ["qwen", "sentencepiece"] {
        let tokenizer = fixture(name);
        for unit in ["a", " ", "\n "] {
            let text = unit.repeat(FOUR_MB / unit.len()) + "x";
            let ids = tokenizer.encode(&text, false).unwrap();
            assert!(tokenizer.decode(&ids, false) == text, "{name} {unit:?}");
        }
    }
}

#[test]
fn pieces_up_to_the_limit_are_merged_whole() {
    let tokenizer = fixture("smollm");
    let library = tokenizers::Tokenizer::from_bytes(read("smollm.json")).unwrap();
    let text = "in".repeat(MAX_PIECE_BYTES / 2);
    let golden = library.encode_fast(text.as_str(), false).unwrap();
    assert_eq!(tokenizer.encode(&text, false).unwrap(), golden.get_ids());
}

#[test]
fn limits_count_every_token() {
    let tokenizer = fixture("deepseek");
    let ids = tokenizer.encode("a b c", true).unwrap();
    assert_eq!(ids[0], 0, "<s> comes first");
    assert_eq!(
        tokenizer.encode_within("a b c", true, ids.len()).unwrap(),
        ids
    );
    assert!(
        tokenizer
            .encode_within("a b c", true, ids.len() - 1)
            .is_err()
    );
    assert!(tokenizer.encode_within("", true, 0).is_err());
    assert!(tokenizer.encode_within("", false, 0).unwrap().is_empty());
}

#[test]
fn first_and_last_tokens_are_as_configured() {
    let load = |name: &str, config: Value| {
        let config = TokenizerConfig::parse(config.to_string().as_bytes()).unwrap();
        Tokenizer::from_json(&read(&format!("{name}.json")), &config).unwrap()
    };
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    let tokenizer = load("deepseek", config.clone());
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), &[1][..]));
    assert_eq!(tokenizer.encode("", true).unwrap(), [0]);

    let mut without = config.clone();
    without["add_bos_token"] = false.into();
    assert!(
        load("deepseek", without)
            .encode("", true)
            .unwrap()
            .is_empty()
    );

    let both = json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
                      "add_bos_token": true, "add_eos_token": true});
    assert_eq!(load("qwen", both).encode("", true).unwrap(), [1, 2]);
    let more = load("qwen", json!({"eos_token": "<|im_end|>"}));
    assert_eq!(more.clone().with_eos(&[0, 2, 999_999]).eos(), [2, 0]);
    assert_eq!(more.eos(), [2]);
}

#[test]
fn patterns_that_need_look_ahead_run_in_the_library() {
    let mut json: Value = serde_json::from_slice(&read("qwen.json")).unwrap();
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+(?=a)|\S+|\s+".into();
    let bytes = json.to_string();
    let ours = Tokenizer::from_json(bytes.as_bytes(), &TokenizerConfig::default()).unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(&bytes).unwrap();
    let text = "the  answer   is <think> 4, as  you\n\nknow";
    let golden = theirs.encode_fast(text, false).unwrap();
    assert_eq!(ours.encode(text, false).unwrap(), golden.get_ids());
    let long = ours.encode(&"a".repeat(TEN_MB), false).unwrap_err();
    assert!(
        matches!(long, TokenizerError::TooLong { bytes: TEN_MB, .. }),
        "{long}"
    );
}

/// The qwen fixture with one thing broken.
fn broken(change: impl FnOnce(&mut Value)) -> TokenizerError {
    let mut json: Value = serde_json::from_slice(&read("qwen.json")).unwrap();
    change(&mut json);
    Tokenizer::from_json(json.to_string().as_bytes(), &TokenizerConfig::default()).unwrap_err()
}

#[test]
fn the_library_pads_and_truncates_nothing() {
    let mut json: Value = serde_json::from_slice(&read("qwen.json")).unwrap();
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+(?=a)|\S+|\s+".into();
    let load = |json: &Value| {
        Tokenizer::from_json(json.to_string().as_bytes(), &TokenizerConfig::default()).unwrap()
    };
    let plain = load(&json).encode("the answer", false).unwrap();
    json["padding"] = json!({"strategy": {"Fixed": 1u64 << 40}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
    json["truncation"] = json!({"direction": "Right", "max_length": 1,
        "strategy": "LongestFirst", "stride": 0});
    assert!(plain.len() > 1);
    assert_eq!(load(&json).encode("the answer", false).unwrap(), plain);
}

#[test]
fn steps_that_would_exhaust_memory_or_stack_are_errors() {
    let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let by_regex = json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": "aa"});
    for step in [doubling, by_regex] {
        let error = broken(|j| {
            j["normalizer"] = json!({"type": "Sequence", "normalizers": vec![step; 40]});
        });
        assert!(error.to_string().contains("times longer"), "{error}");
    }
    let digits = json!({"type": "Digits", "individual_digits": true});
    let nested = json!({"type": "Sequence", "pretokenizers": vec![digits; 50_000]});
    let error = broken(|j| j["pre_tokenizer"]["pretokenizers"][0] = nested);
    assert!(error.to_string().contains("50001 pretokenizers"), "{error}");
}

#[test]
fn broken_json_files_are_errors() {
    let json = read("qwen.json");
    for len in [0, 1, 100, json.len() / 2, json.len() - 2] {
        let error = Tokenizer::from_json(&json[..len], &TokenizerConfig::default()).unwrap_err();
        assert!(matches!(error, TokenizerError::Json { .. }), "{error}");
    }
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 8] = [
        ("merge", |j| {
            j["model"]["merges"]
                .as_array_mut()
                .unwrap()
                .push(json!(["Ġ", "Ġzz"]));
        }),
        ("merge", |j| {
            j["model"]["merges"]
                .as_array_mut()
                .unwrap()
                .push(json!("onlyone"));
        }),
        ("over", |j| j["model"]["vocab"]["a"] = json!(u32::MAX)),
        ("over", |j| j["added_tokens"][0]["id"] = json!(1u32 << 30)),
        ("Unigram", |j| j["model"]["type"] = "Unigram".into()),
        ("##", |j| {
            j["model"]["continuing_subword_prefix"] = "##".into();
        }),
        ("decoder", |j| j["decoder"] = json!({"type": "WordPiece"})),
        ("vocab", |j| j["model"]["vocab"]["a"] = json!(-1)),
    ];
    for (part, change) in changes {
        let error = broken(change).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn broken_gguf_tokenizers_are_errors() {
    let load = |change: fn(&mut GgufTokenizer)| {
        let mut gguf = as_gguf("smollm", "smollm");
        change(&mut gguf);
        Tokenizer::from_gguf(gguf).unwrap_err().to_string()
    };
    type Change = fn(&mut GgufTokenizer);
    let changes: [(&str, Change); 8] = [
        ("\"bert\"", |g| g.model = "bert".into()),
        ("\"no-such\"", |g| g.pre = Some("no-such".into())),
        ("token_type has 3", |g| g.token_types.truncate(3)),
        ("scores has 1 ", |g| g.scores = vec![0.0]),
        ("bos", |g| g.bos = Some(1 << 20)),
        ("merge 0", |g| g.merges[0] = "no space here".into()),
        ("merge 1", |g| g.merges[1] = "x yzzy".into()),
        ("empty", |g| {
            *g = GgufTokenizer {
                model: "gpt2".into(),
                ..Default::default()
            }
        }),
    ];
    for (part, change) in changes {
        let error = load(change);
        assert!(error.contains(part), "{part}: {error}");
    }
    let scoreless = GgufTokenizer {
        model: "llama".into(),
        ..as_gguf("smollm", "smollm")
    };
    let error = Tokenizer::from_gguf(scoreless).unwrap_err().to_string();
    assert!(error.contains("scores"), "{error}");
}

#[test]
fn unknown_ids_decode_to_nothing() {
    let tokenizer = fixture("qwen");
    assert_eq!(tokenizer.decode(&[u32::MAX, 1_000_000], false), "");
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
    assert!(!tokenizer.is_special(u32::MAX));
}
