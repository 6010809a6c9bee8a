//! Every format against values read by the formats' own Python libraries, bit for bit.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use safetensors::SafeTensors;
use scrimp_tensor::{DType, decode, encode_vec};

fn goldens() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/blocks.safetensors");
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; tools/goldens/blocks.py makes it",
            path.display()
        )
    })
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let bytes = file.tensor(name).unwrap().data().to_vec();
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

/// Bits, with every NaN the same: its payload means nothing.
fn bits(values: &[f32]) -> Vec<u32> {
    let bit = |v: &f32| {
        if v.is_nan() {
            f32::NAN.to_bits()
        } else {
            v.to_bits()
        }
    };
    values.iter().map(bit).collect()
}

#[test]
fn decoding_meets_the_goldens() {
    let bytes = goldens();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = 0;
    for dtype in DType::all().filter(|d| d.is_float() && *d != DType::F32) {
        let name = match dtype {
            DType::F8E4M3 => "float8_e4m3fn".to_owned(),
            _ => dtype.name().to_lowercase(),
        };
        let packed = file.tensor(&format!("{name}.bytes")).unwrap();
        let wanted = floats(&file, &format!("{name}.values"));
        let mut found = vec![0.0; wanted.len()];
        decode(dtype, packed.data(), &mut found).unwrap();
        let differs = bits(&found)
            .iter()
            .zip(bits(&wanted))
            .position(|(&a, b)| a != b);
        if let Some(i) = differs {
            panic!(
                "{dtype}: value {i} is {} and should be {}",
                found[i], wanted[i]
            );
        }
        seen += 1;
    }
    assert_eq!(seen, 15);
}

#[test]
fn encoding_meets_the_goldens() {
    let bytes = goldens();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for dtype in [
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
    ] {
        let name = dtype.name().to_lowercase();
        let values = floats(&file, &format!("{name}.src"));
        let wanted = file.tensor(&format!("{name}.quantized")).unwrap();
        let found = encode_vec(dtype, &values).unwrap();
        let differs = found.iter().zip(wanted.data()).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{dtype}: first byte that differs");
        assert_eq!(found.len(), wanted.data().len());
    }
}
