//! Any bytes as a safetensors file: an error, or a header whose every tensor can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_checkpoint::parse_safetensors_header;
use scrimp_tensor::TensorView;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = parse_safetensors_header(file) else {
        return;
    };
    for info in &header.tensors {
        let view = TensorView {
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: &file[info.range.clone()],
        };
        view.to_f32().expect("a checked header describes its bytes");
    }
});
