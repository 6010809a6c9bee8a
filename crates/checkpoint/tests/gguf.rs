//! GGUF headers: a good one, and every way to be bad.

#![allow(clippy::unwrap_used)]

mod common;

use common::Gguf;
use scrimp_checkpoint::parse_gguf_header;
use scrimp_model::{MetaArray, MetaValue};
use scrimp_tensor::DType;

fn refused(file: &[u8], words: &[&str]) {
    let error = parse_gguf_header(file).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

/// A file of every value type and three tensors.
fn good() -> Gguf {
    let texts = [Gguf::string("à".as_bytes()), Gguf::string(b"")].concat();
    Gguf::new()
        .raw("u8", 0, &[200])
        .raw("i8", 1, &[0xff])
        .raw("u16", 2, &[1, 2])
        .raw("i16", 3, &[0xfe, 0xff])
        .u32("u32", 7)
        .raw("i32", 5, &(-5i32).to_le_bytes())
        .raw("f32", 6, &0.5f32.to_le_bytes())
        .raw("bool", 7, &[1])
        .text("text", "words")
        .raw("u64", 10, &(1u64 << 60).to_le_bytes())
        .raw("i64", 11, &(-9i64).to_le_bytes())
        .raw("f64", 12, &0.25f64.to_le_bytes())
        .array("texts", 8, 2, &texts)
        .array("i16s", 3, 2, &[1, 0, 0xff, 0xff])
        .array("bools", 7, 3, &[1, 0, 1])
        .array("f32s", 6, 1, &2.0f32.to_le_bytes())
        .tensor("b", &[64, 3], 2, 32)
        .tensor("a", &[5], 0, 0)
        .tensor("c", &[2, 3, 4], 24, 160)
        .data(184)
}

#[test]
fn a_good_file_is_read_whole() {
    for version in [2, 3] {
        let file = Gguf { version, ..good() }.build();
        let header = parse_gguf_header(&file).unwrap();
        assert_eq!(header.version, version);
        let m = &header.metadata;
        assert_eq!(m.len(), 16);
        assert_eq!(m.unsigned("u8"), Some(200));
        assert_eq!(m.get("i8"), Some(&MetaValue::Signed(-1)));
        assert_eq!(m.unsigned("u16"), Some(513));
        assert_eq!(m.get("i16"), Some(&MetaValue::Signed(-2)));
        assert_eq!(m.unsigned("u32"), Some(7));
        assert_eq!(m.get("i32"), Some(&MetaValue::Signed(-5)));
        assert_eq!(m.unsigned("i32"), None);
        assert_eq!(m.float("f32"), Some(0.5));
        assert_eq!(m.bool("bool"), Some(true));
        assert_eq!(m.text("text"), Some("words"));
        assert_eq!(m.unsigned("u64"), Some(1 << 60));
        assert_eq!(m.get("i64"), Some(&MetaValue::Signed(-9)));
        assert_eq!(m.float("f64"), Some(0.25));
        assert_eq!(m.texts("texts").unwrap(), ["à", ""]);
        assert_eq!(m.integers("i16s").unwrap(), [1, -1]);
        assert_eq!(
            m.array("bools"),
            Some(&MetaArray::Bool(vec![true, false, true]))
        );
        assert_eq!(m.floats("f32s").unwrap(), [2.0]);

        let [a, b, c] = header.tensors.as_slice() else {
            panic!()
        };
        assert_eq!(
            (a.name.as_str(), a.dtype, a.shape.as_slice()),
            ("a", DType::F32, &[5][..])
        );
        assert_eq!(
            (b.name.as_str(), b.dtype, b.shape.as_slice()),
            ("b", DType::Q4_0, &[3, 64][..])
        );
        assert_eq!(
            (c.name.as_str(), c.dtype, c.shape.as_slice()),
            ("c", DType::I8, &[4, 3, 2][..])
        );
        assert_eq!(file[a.range.start], 0);
        assert_eq!(file[b.range.start], 32);
        assert_eq!(b.range.len(), 3 * 2 * 18);
        assert_eq!(c.range.end, file.len());
    }
}

#[test]
fn every_truncation_is_an_error() {
    let file = good().build();
    for end in 0..file.len() {
        assert!(parse_gguf_header(&file[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn magic_and_versions() {
    refused(b"", &["GGUF"]);
    refused(b"GGML\x03\0\0\0", &["no GGUF file"]);
    refused(
        &Gguf {
            version: 1,
            ..Gguf::new()
        }
        .build(),
        &["version 1"],
    );
    refused(
        &Gguf {
            version: 4,
            ..Gguf::new()
        }
        .build(),
        &["version 4"],
    );
    refused(
        &Gguf {
            version: 3 << 24,
            ..Gguf::new()
        }
        .build(),
        &["big-endian"],
    );
}

#[test]
fn counts_and_lengths_beyond_the_file() {
    refused(
        &Gguf {
            tensors: u64::MAX,
            ..good()
        }
        .build(),
        &["tensors", "18446744073709551615"],
    );
    refused(
        &Gguf {
            keys: 1 << 40,
            ..good()
        }
        .build(),
        &["key-values", "1099511627776"],
    );
    refused(&Gguf { keys: 17, ..good() }.build(), &["possible"]);
    refused(
        &Gguf::new().array("x", 8, 1 << 50, &[]).build(),
        &["\"x\"", "1125899906842624"],
    );
    refused(&Gguf::new().array("x", 4, 30, &[0; 4]).build(), &["\"x\""]);
    let long = (1u64 << 62).to_le_bytes();
    refused(
        &Gguf::new().raw("x", 8, &long).build(),
        &["inside x", "probably incomplete"],
    );
    let key = "k".repeat(70_000);
    refused(&Gguf::new().u32(&key, 1).build(), &["a key", "70000"]);
    refused(
        &Gguf::new()
            .tensor(&"n".repeat(2000), &[1], 0, 0)
            .data(4)
            .build(),
        &["name", "2000"],
    );
}

#[test]
fn values_that_cannot_be() {
    refused(
        &Gguf::new().raw("x", 13, &[0; 8]).build(),
        &["\"x\"", "value type 13"],
    );
    refused(
        &Gguf::new().raw("x", 7, &[2]).build(),
        &["\"x\"", "boolean of value 2"],
    );
    refused(
        &Gguf::new().raw("x", 8, &Gguf::string(&[0xff])).build(),
        &["x at byte", "UTF-8"],
    );
    refused(
        &Gguf::new().array("x", 9, 1, &[0; 64]).build(),
        &["\"x\"", "array of arrays"],
    );
    refused(
        &Gguf::new().array("x", 77, 1, &[0; 64]).build(),
        &["value type 77"],
    );
    refused(
        &Gguf::new().array("x", 7, 2, &[0, 9]).build(),
        &["boolean of value 9"],
    );
    refused(
        &Gguf::new().u32("x", 1).u32("x", 1).build(),
        &["key \"x\"", "twice"],
    );
    for bad in [0, 3, 48] {
        refused(
            &Gguf::new().u32("general.alignment", bad).build(),
            &["general.alignment", "power of two"],
        );
    }
    refused(
        &Gguf::new().text("general.alignment", "32").build(),
        &["general.alignment"],
    );
}

#[test]
fn tensors_that_cannot_be() {
    let one = |extents: &[u64], number, offset| {
        Gguf::new()
            .tensor("w", extents, number, offset)
            .data(64)
            .build()
    };
    assert!(parse_gguf_header(&one(&[16], 0, 0)).is_ok());
    refused(&one(&[17], 0, 0), &["\"w\"", "68 bytes", "incomplete"]);
    refused(&one(&[], 0, 0), &["\"w\"", "0 extents"]);
    refused(&one(&[1; 5], 0, 0), &["5 extents"]);
    refused(&one(&[0, 4], 0, 0), &["[0, 4]"]);
    refused(&one(&[1 << 32, 1 << 32], 0, 0), &["4294967296"]);
    refused(&one(&[u64::MAX], 0, 0), &["does not fit"]);
    refused(&one(&[33], 2, 0), &["\"w\"", "33", "Q4_0", "32"]);
    refused(&one(&[256], 16, 0), &["16, IQ2_XXS", "Q4_K", "MXFP4"]);
    refused(&one(&[256], 23, 0), &["IQ4_XS"]);
    refused(&one(&[256], 31, 0), &["Q4_0_4_4", "removed"]);
    refused(&one(&[256], 999, 0), &["type 999"]);
    refused(&one(&[4], 0, 8), &["offset 8", "alignment, 32"]);
    refused(&one(&[4], 0, u64::MAX - 31), &["\"w\""]);
    let twice = Gguf::new()
        .tensor("w", &[4], 0, 0)
        .tensor("w", &[4], 0, 32)
        .data(64);
    refused(&twice.build(), &["\"w\"", "twice"]);
    let inside = Gguf::new()
        .tensor("v", &[16], 0, 0)
        .tensor("w", &[4], 0, 32)
        .data(64);
    refused(&inside.build(), &["\"w\" begins inside \"v\""]);
}

#[test]
fn an_alignment_of_its_own() {
    let mut gguf = Gguf::new()
        .u32("general.alignment", 128)
        .tensor("w", &[4], 0, 128)
        .data(144);
    gguf.alignment = 128;
    let file = gguf.build();
    let header = parse_gguf_header(&file).unwrap();
    assert_eq!(header.tensors[0].range, file.len() - 16..file.len());
}
