//! Any bytes as a GGUF file: an error, or a header whose every tensor can be read, and key-values
//! that make a usable configuration or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_checkpoint::parse_gguf_header;
use scrimp_model::ModelConfig;
use scrimp_tensor::TensorView;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = parse_gguf_header(file) else {
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
    if let Ok(config) = ModelConfig::from_gguf(&header.metadata) {
        scrimp_fuzz::use_config(&config);
    }
});
