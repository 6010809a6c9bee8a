//! `scrimp compare` on the built-in model, with as little of everything as shows that it works.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const FEW: [&str; 15] = [
    "--steps",
    "2,1",
    "--problems",
    "1",
    "--max-tokens",
    "120",
    "--samples",
    "4",
    "--seqlen",
    "64",
    "-n",
    "4",
    "--threads",
    "2",
    "--json",
];

fn compare(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .arg("compare")
        .args(args)
        .env_remove("SCRIMP_MODEL")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn compared(args: &[&str]) -> Value {
    let output = compare(&[args, &FEW].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    assert!(
        said.is_empty(),
        "no bars where there is no terminal: {said}"
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refusal(args: &[&str]) -> String {
    let output = compare(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} was accepted");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn number(row: &Value, name: &str) -> f64 {
    row[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name} of {row}"))
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn every_row_of_the_guides_table_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let page = path(folder.path(), "page.html");
    let report = compared(&["--html", &page]);
    assert_eq!(report["reference"], "BF16");
    assert_eq!(report["group_size"], 128);
    assert_eq!(report["reasoning"]["problems"], 8);
    assert_eq!(report["text"]["tokens"], 120);
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|r| r["name"].as_str().unwrap()).collect();
    let wanted = [
        "BF16",
        "INT8",
        "INT4 (naive)",
        "GPTQ-INT4",
        "AWQ-INT4",
        "AWQ+GPTQ-INT4",
    ];
    assert_eq!(names, wanted);
    for row in rows {
        assert_eq!(row["failed"], Value::Null, "{row}");
        assert!(number(row, "perplexity") >= 1.0 && number(row, "perplexity") < 1.2);
        assert!(number(row, "decode_tokens_per_s") > 0.0);
        assert!((0.0..=1.0).contains(&number(row, "accuracy")));
        assert!(number(row, "token_inflation") > 0.9);
        let by_length = row["accuracy_by_length"].as_array().unwrap();
        let steps: Vec<u64> = by_length
            .iter()
            .map(|l| l["steps"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, [1, 2], "shortest first, however they were asked for");
        assert!(by_length.iter().all(|l| l["problems"] == 4));
    }
    let (reference, made) = rows.split_first().unwrap();
    // Routing biases are in 32 bits.
    let bits = number(reference, "bits_per_weight");
    assert!((16.0..16.01).contains(&bits), "{bits}");
    assert_eq!(number(reference, "accuracy_of_reference"), 1.0);
    assert_eq!(reference["seconds_to_make"], Value::Null);
    assert_eq!(reference["kl_mean"], Value::Null);
    for row in made {
        let bits = number(row, "bits_per_weight");
        let (least, most) = match row["scheme"].as_str().unwrap() {
            "int8" => (8.0, 8.3),
            _ => (4.125, 4.2),
        };
        assert!(bits >= least && bits < most, "{row}");
        // What stays in 16 bits counts in what is stored.
        assert!(number(row, "bits_per_weight_overall") > bits);
        assert!(number(row, "bytes_on_disk") < number(reference, "bytes_on_disk") * 0.6);
        assert!(number(row, "bytes_resident") < number(reference, "bytes_resident") * 0.6);
        assert!(number(row, "kl_mean") > 0.0 && number(row, "kl_mean") < 0.1);
        assert!(number(row, "top1_agreement") > 0.9);
        assert!(number(row, "seconds_to_make") > 0.0);
        assert!(cfg!(not(target_os = "linux")) || number(row, "peak_bytes_to_make") > 1e6);
    }
    let kl = |i: usize| number(&rows[i], "kl_mean");
    assert!(kl(1) < kl(2), "8 bits are nearer than 4");
    holds_by_itself(&std::fs::read_to_string(page).unwrap(), &wanted);
}

/// A page that fetches nothing, with every row and both pictures.
fn holds_by_itself(page: &str, names: &[&str]) {
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for outside in [
        "http:", "https:", "src=", "href=", "url(", "@import", "<script",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    for name in names {
        assert!(page.contains(&format!("<td>{name}</td>")), "{name}");
    }
    assert!(!page.contains("NaN") && page.ends_with("</html>\n"));
    // Each row's line in the picture of all problems and in four by kind.
    assert_eq!(page.matches("<polyline").count(), names.len() * 5);
}

#[test]
fn a_scheme_that_cannot_be_made_is_a_row_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let kept = path(folder.path(), "kept");
    let prose = path(folder.path(), "prose.jsonl");
    let lines = "{\"text\": \"Start with 17. a) add 25\"}\n\
                 {\"prompt\": \"Start with 17.\", \"response\": \"17\\n a) +25 123 42\"}\n";
    std::fs::write(&prose, lines).unwrap();
    let report = compared(&[
        "ponder",
        "--schemes",
        "int8,int4-rtn",
        "--group-size",
        "48",
        "--keep",
        &kept,
        "--text",
        &prose,
    ]);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[1]["failed"], Value::Null);
    let why = rows[2]["failed"].as_str().unwrap();
    assert!(why.starts_with("quantize: ") && why.contains("48"), "{why}");
    assert_eq!(rows[2]["perplexity"], Value::Null);
    // What was made stays, and is not overwritten.
    assert!(folder.path().join("kept/int8/config.json").exists());
    let said = refusal(&["--keep", &kept]);
    assert!(said.contains("new or an empty folder"), "{said}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let said = refusal(&["--steps", "8,65"]);
    assert!(
        said.contains("--steps 65") && said.contains("1 to 64"),
        "{said}"
    );
    let said = refusal(&["--schemes", "int8,int4-rtn,int8"]);
    assert!(said.contains("int8 twice"), "{said}");
    let said = refusal(&["--text", "no/such/file"]);
    assert!(said.contains("no/such/file"), "{said}");
    let said = refusal(&["--max-tokens", "1"]);
    assert!(said.contains("--max-tokens 1"), "{said}");
    let llama = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/llama");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(format!("{llama}/{file}"), folder.path().join(file)).unwrap();
    }
    let ponder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/ponder");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(format!("{ponder}/{file}"), folder.path().join(file)).unwrap();
    }
    let said = refusal(&[folder.path().to_str().unwrap()]);
    assert!(said.contains("--text FILE"), "{said}");
}
