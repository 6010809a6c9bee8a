//! Any bytes as a request's body: a checked request, or an error that is the client's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_engine::SamplingParams;
use scrimp_server::parse;

fuzz_target!(|body: &[u8]| {
    let defaults = SamplingParams::default();
    let errors = [
        parse::parse_chat_request(body, &defaults).err(),
        parse::parse_completion_request(body, &defaults).err(),
        parse::parse_tokenize_request(body).err(),
        parse::parse_detokenize_request(body).err(),
    ];
    for error in errors.into_iter().flatten() {
        assert!(error.status.is_client_error(), "{error}");
    }
});
