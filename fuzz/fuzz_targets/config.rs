//! Any bytes as a `config.json`: an error, or a configuration that everything can be sized from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_model::ModelConfig;

fuzz_target!(|file: &[u8]| {
    let Ok(json) = serde_json::from_slice(file) else {
        return;
    };
    if let Ok(config) = ModelConfig::from_hf(&json) {
        scrimp_fuzz::use_config(&config);
        let _ = config.merge_generation_config(&json);
    }
});
