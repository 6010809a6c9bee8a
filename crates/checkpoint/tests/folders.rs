//! Folders: indexes, shards, split files, and what is missing from them.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{Gguf, vectors};
use scrimp_checkpoint::{Checkpoint, Format};
use serde_json::{Value, json};
use tempfile::TempDir;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn refused(path: &Path, words: &[&str]) {
    let error = Checkpoint::open(path).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

const INDEX: &str = "model.safetensors.index.json";

fn sharded(weight_map: Value) -> TempDir {
    let index = json!({"metadata": {"total_size": 24}, "weight_map": weight_map}).to_string();
    let (one, two) = (vectors(&["a", "b"]), vectors(&["c"]));
    folder(&[
        (INDEX, index.as_bytes()),
        ("1.safetensors", &one),
        ("2.safetensors", &two),
    ])
}

#[test]
fn shards_make_one_model() {
    let dir = sharded(json!({"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.format(), Format::Safetensors);
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(checkpoint.weight_bytes(), 24);
    assert_eq!(
        checkpoint.get("b").unwrap().bytes,
        [8, 9, 10, 11, 12, 13, 14, 15]
    );
    let (file, range) = checkpoint.location("c").unwrap();
    assert!(file.ends_with("2.safetensors"));
    assert_eq!(fs::read(file).unwrap()[range].len(), 8);
    checkpoint.release("a");
    checkpoint.will_need("a");
    assert_eq!(checkpoint.get("a").unwrap().bytes[7], 7);
}

#[test]
fn an_index_that_does_not_fit_its_shards() {
    let dir = sharded(json!({"a": "1.safetensors", "b": "1.safetensors", "c": "3.safetensors"}));
    refused(dir.path(), &["\"3.safetensors\"", "missing", "1 tensors"]);
    let dir = sharded(
        json!({"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors", "d": "2.safetensors"}),
    );
    refused(dir.path(), &["2.safetensors does not hold \"d\""]);
    let dir = sharded(json!({"a": "1.safetensors", "c": "2.safetensors"}));
    refused(dir.path(), &["1.safetensors holds \"b\"", "index"]);
    for outside in [
        "../1.safetensors",
        "/etc/passwd",
        "",
        "..",
        "x/1.safetensors",
    ] {
        refused(
            sharded(json!({"a": outside})).path(),
            &["\"a\"", "no name of a file"],
        );
    }
    refused(sharded(json!({"a": 3})).path(), &["\"a\"", "3"]);
    refused(sharded(json!({})).path(), &["weight_map"]);
    refused(sharded(json!([1])).path(), &["weight_map"]);
    let dir = folder(&[(INDEX, b"{\"weight_map\": ")]);
    refused(dir.path(), &[INDEX, "not valid JSON", "line 1"]);
}

#[test]
fn one_name_in_two_shards() {
    let (one, two) = (vectors(&["a"]), vectors(&["a"]));
    let files: [(&'static str, &'static [u8]); 2] =
        [("1.safetensors", one.leak()), ("2.safetensors", two.leak())];
    let error = Checkpoint::from_static(&files).unwrap_err().to_string();
    assert!(
        error.contains("\"a\"") && error.contains("1.safetensors"),
        "{error}"
    );
    assert!(error.contains("again in 2.safetensors"), "{error}");
}

#[test]
fn the_one_file_of_a_folder_is_found() {
    let (model, other) = (vectors(&["a"]), vectors(&["x"]));
    let dir = folder(&[
        ("model.safetensors", &model),
        ("training.safetensors", &other),
    ]);
    assert!(Checkpoint::open(dir.path()).unwrap().contains("a"));
    let dir = folder(&[("weights.safetensors", &model), ("config.json", b"{}")]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(
        checkpoint.files().text("config.json").unwrap().unwrap(),
        "{}"
    );
    assert!(checkpoint.files().read("tokenizer.json").unwrap().is_none());
    let gguf = Gguf::new().build();
    let dir = folder(&[("logits.safetensors", &other), ("model.gguf", &gguf)]);
    let format = Checkpoint::open(dir.path()).unwrap().format();
    assert_eq!(
        format,
        Format::Gguf,
        "a safetensors file of another name is not the model"
    );
    let dir = folder(&[("a.safetensors", &model), ("b.safetensors", &other)]);
    refused(dir.path(), &["2 .safetensors", INDEX]);
}

#[test]
fn what_is_no_model() {
    refused(Path::new("/nonexistent/model"), &["/nonexistent/model"]);
    refused(folder(&[]).path(), &["no model", ".gguf"]);
    refused(
        folder(&[("pytorch_model.bin", b"x")]).path(),
        &["pickle", "convert"],
    );
    let dir = folder(&[
        ("model.txt", b"x"),
        ("empty.gguf", b""),
        ("short.safetensors", b"abc"),
    ]);
    refused(
        &dir.path().join("model.txt"),
        &["model.txt", ".gguf or .safetensors"],
    );
    refused(
        &dir.path().join("empty.gguf"),
        &["empty.gguf", "no GGUF file"],
    );
    refused(
        &dir.path().join("short.safetensors"),
        &["short.safetensors", "3 bytes"],
    );
    let a = Gguf::new().build();
    refused(
        folder(&[("a.gguf", &a), ("b.gguf", &a)]).path(),
        &["several", "a.gguf, b.gguf"],
    );
}

fn part(number: u16, count: u16, tensor: &str) -> Gguf {
    Gguf::new()
        .text("general.name", &format!("part {number}"))
        .raw("split.no", 2, &number.to_le_bytes())
        .raw("split.count", 2, &count.to_le_bytes())
        .raw("split.tensors.count", 5, &2i32.to_le_bytes())
        .tensor(tensor, &[4], 0, 0)
        .data(16)
}

#[test]
fn split_ggufs() {
    let (one, two) = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
    let (a, b) = (part(0, 2, "a").build(), part(1, 2, "b").build());
    let dir = folder(&[(one, &a), (two, &b)]);
    for path in [
        dir.path().to_owned(),
        dir.path().join(one),
        dir.path().join(two),
    ] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.format(), Format::Gguf);
        let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(
            checkpoint.metadata().unwrap().text("general.name"),
            Some("part 0")
        );
    }
    refused(
        folder(&[(one, &a)]).path(),
        &[two, "part 2 of 2 is missing"],
    );
    refused(
        folder(&[(one, &a), (two, &a)]).path(),
        &[two, "split.no should be 1", "it is 0"],
    );
    let three = part(1, 3, "b").build();
    refused(
        folder(&[(one, &a), (two, &three)]).path(),
        &["split.count should be 2", "it is 3"],
    );
    let same = part(1, 2, "a").build();
    refused(
        folder(&[(one, &a), (two, &same)]).path(),
        &["\"a\"", "again in"],
    );
    refused(
        folder(&[("m.gguf", &a)]).path(),
        &["one of 2 parts", "-00001-of-00002.gguf"],
    );
    let more = part(1, 2, "b").tensor("c", &[4], 0, 32).data(48).build();
    refused(
        folder(&[(one, &a), (two, &more)]).path(),
        &["split.tensors.count is 2", "hold 3"],
    );
}

#[test]
fn names_are_held_against_what_the_model_wants() {
    let file: &'static [u8] = vectors(&["a", "b", "mtp.c"]).leak();
    let checkpoint = Checkpoint::from_static(&[("model.safetensors", file)]).unwrap();
    let mtp = |name: &str| name.starts_with("mtp.");
    checkpoint.check_names(["a", "b"], mtp).unwrap();
    let error = checkpoint
        .check_names(["a", "b", "d", "e"], mtp)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no tensor \"d\", \"e\""), "{error}");
    let error = checkpoint.check_names(["a"], mtp).unwrap_err().to_string();
    assert!(error.contains("does not call for: \"b\""), "{error}");
    assert!(!error.contains("mtp.c"), "{error}");
}

#[test]
fn configurations_name_their_file() {
    let model = vectors(&["a"]);
    let config = |text: &[u8]| {
        let dir = folder(&[("model.safetensors", &model), ("config.json", text)]);
        Checkpoint::open(dir.path())
            .unwrap()
            .config()
            .unwrap_err()
            .to_string()
    };
    let error = config(b"{");
    assert!(error.contains("config.json is not valid JSON"), "{error}");
    let error = config(br#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 0}"#);
    assert!(error.contains("config.json: hidden_size is 0"), "{error}");
    let dir = folder(&[("model.safetensors", &model)]);
    let error = Checkpoint::open(dir.path())
        .unwrap()
        .config()
        .unwrap_err()
        .to_string();
    assert!(error.contains("config.json is missing"), "{error}");
}
