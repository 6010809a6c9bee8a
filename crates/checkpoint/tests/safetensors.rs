//! safetensors headers: a good one, and every way to be bad.

#![allow(clippy::unwrap_used)]

mod common;

use common::{safetensors, vectors};
use scrimp_checkpoint::{Checkpoint, parse_safetensors_header};
use scrimp_tensor::DType;

fn refused(file: &[u8], words: &[&str]) {
    let error = parse_safetensors_header(file).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

fn entry(rest: &str, data: usize) -> Vec<u8> {
    safetensors(&format!(r#"{{"w":{{{rest}}}}}"#), data)
}

#[test]
fn a_good_file_is_read_in_the_order_of_its_bytes() {
    let header = r#"{"__metadata__":{"format":"pt"},
        "late":{"dtype":"F8_E4M3","shape":[3,1],"data_offsets":[10,13]},
        "empty":{"dtype":"I64","shape":[0,7],"data_offsets":[10,10]},
        "early":{"dtype":"BF16","shape":[5],"data_offsets":[0,10]}}   "#;
    let file = safetensors(header, 13);
    let parsed = parse_safetensors_header(&file).unwrap();
    let names: Vec<&str> = parsed.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["early", "empty", "late"]);
    assert_eq!(parsed.metadata["format"], "pt");
    let late = &parsed.tensors[2];
    assert_eq!(
        (late.dtype, late.shape.as_slice()),
        (DType::F8E4M3, &[3, 1][..])
    );
    assert_eq!(file[late.range.clone()], [10, 11, 12]);
}

#[test]
fn misaligned_floats_are_read_all_the_same() {
    // One byte first puts the floats at an odd address, whatever the map's.
    let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}"#;
    let mut file = safetensors(header, 1);
    file.extend(1.5f32.to_le_bytes());
    file.extend((-2.25f32).to_le_bytes());
    let file: &'static [u8] = file.leak();
    let checkpoint = Checkpoint::from_static(&[("model.safetensors", file)]).unwrap();
    assert_eq!(checkpoint.floats("b", &[2]).unwrap(), [1.5, -2.25]);
    let error = checkpoint.floats("b", &[3]).unwrap_err().to_string();
    assert!(
        error.contains("\"b\"") && error.contains("[2]") && error.contains("[3]"),
        "{error}"
    );
    let error = checkpoint.floats("a", &[1]).unwrap_err().to_string();
    assert!(error.contains("U8"), "{error}");
    let error = checkpoint.floats("c", &[1]).unwrap_err().to_string();
    assert!(error.contains("no tensor \"c\""), "{error}");
}

#[test]
fn fp8_weights_bring_their_scales() {
    let header = r#"{"w":{"dtype":"F8_E4M3","shape":[3,5],"data_offsets":[0,15]},
        "w_scale_inv":{"dtype":"F32","shape":[2,2],"data_offsets":[15,31]}}"#;
    let mut file = safetensors(header, 0);
    file.extend([0x38; 15]); // 1.0
    for scale in [1.0f32, 2.0, 3.0, 4.0] {
        file.extend(scale.to_le_bytes());
    }
    let file: &'static [u8] = file.leak();
    let checkpoint = Checkpoint::from_static(&[("model.safetensors", file)]).unwrap();
    let mut scales = Vec::new();
    let matrix = checkpoint
        .matrix("w", (3, 5), Some((2, 4)), &mut scales)
        .unwrap();
    let mut row = [0.0; 5];
    matrix.decode_row(0, &mut row).unwrap();
    assert_eq!(row, [1.0, 1.0, 1.0, 1.0, 2.0]);
    matrix.decode_row(2, &mut row).unwrap();
    assert_eq!(row, [3.0, 3.0, 3.0, 3.0, 4.0]);
    let error = checkpoint
        .matrix("w", (3, 5), None, &mut Vec::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("weight_block_size"), "{error}");
    let error = checkpoint
        .matrix("w", (3, 5), Some((1, 4)), &mut Vec::new())
        .unwrap_err();
    assert!(error.to_string().contains("w_scale_inv"), "{error}");
}

#[test]
fn lengths_beyond_the_file() {
    refused(b"", &["0 bytes"]);
    refused(&[1, 2, 3], &["3 bytes"]);
    refused(&[0xff; 64], &["18446744073709551615", "56"]);
    refused(&(1u64 << 40).to_le_bytes(), &["1099511627776"]);
    let good = vectors(&["a", "b"]);
    refused(&good[..20], &["truncated"]);
    refused(&good[..good.len() - 1], &["\"b\"", "truncated"]);
}

#[test]
fn json_that_is_no_header() {
    refused(&safetensors("[]", 0), &["not the JSON"]);
    refused(&safetensors("{", 0), &["not the JSON"]);
    refused(&safetensors("\u{1}", 0), &["not the JSON"]);
    refused(&safetensors(r#"{"a":3}"#, 0), &["not the JSON"]);
    refused(&safetensors(&"[".repeat(100_000), 0), &["not the JSON"]);
    refused(&entry(r#""dtype":"F32","shape":[1]"#, 4), &["data_offsets"]);
    refused(
        &entry(r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#, 4),
        &["-1"],
    );
    refused(
        &entry(r#""dtype":"F32","shape":[1.5],"data_offsets":[0,4]"#, 4),
        &["1.5"],
    );
}

#[test]
fn equal_names() {
    refused(&vectors(&["a", "b", "a"]), &["\"a\"", "twice"]);
    let header = r#"{"__metadata__":{},"__metadata__":{}}"#;
    refused(&safetensors(header, 0), &["__metadata__", "twice"]);
}

#[test]
fn types_shapes_and_offsets_that_do_not_agree() {
    refused(
        &entry(r#""dtype":"F64","shape":[1],"data_offsets":[0,8]"#, 8),
        &["\"w\"", "F64"],
    );
    refused(
        &entry(r#""dtype":"Q4_0","shape":[32],"data_offsets":[0,18]"#, 18),
        &["Q4_0"],
    );
    refused(
        &entry(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#, 8),
        &["[3]", "8 bytes"],
    );
    refused(
        &entry(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#, 8),
        &["8..0"],
    );
    let many = r#""dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]"#;
    refused(&entry(many, 1), &["9 extents"]);
    let huge = r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]"#;
    refused(&entry(huge, 0), &["4294967296"]);
    let wrapping = r#""dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]"#;
    refused(&entry(wrapping, 4), &["4611686018427387905"]);
    let far = format!(
        r#""dtype":"U8","shape":[2],"data_offsets":[{},{}]"#,
        u64::MAX - 2,
        u64::MAX
    );
    refused(&entry(&far, 2), &["\"w\"", "truncated"]);
}

#[test]
fn overlaps_and_gaps() {
    let two = |b: &str, data| {
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        );
        safetensors(&header, data)
    };
    assert!(parse_safetensors_header(&two("[4,8]", 8)).is_ok());
    refused(&two("[3,7]", 7), &["\"b\"", "inside", "\"a\""]);
    refused(&two("[0,4]", 4), &["inside"]);
    refused(&two("[5,9]", 9), &["4..5", "no tensor"]);
    refused(&two("[4,8]", 10), &["8..10", "no tensor"]);
}
