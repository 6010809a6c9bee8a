//! Any GGUF key-values of a tokenizer: an error, or a tokenizer that encodes any text to ids it
//! knows. A line is a field: `tokens` has lines of type, score and text, and `merges` follow an
//! empty line; what follows a zero byte is the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_text::{GgufTokenizer, Tokenizer};

fuzz_target!(|input: &[u8]| {
    let (file, text) = scrimp_fuzz::file_and_text(input);
    let gguf = read(&String::from_utf8_lossy(file));
    if let Ok(tokenizer) = Tokenizer::from_gguf(gguf) {
        scrimp_fuzz::use_tokenizer(&tokenizer, &text);
    }
});

/// `model pre bos eos eot unk flags`, a line a token, an empty line, a line a merge.
fn read(file: &str) -> GgufTokenizer {
    let mut lines = file.split('\n');
    let mut fields = lines.next().unwrap_or_default().split(' ');
    let mut field = || fields.next().filter(|field| !field.is_empty());
    let mut gguf = GgufTokenizer {
        model: field().unwrap_or_default().to_owned(),
        pre: field().map(str::to_owned),
        ..GgufTokenizer::default()
    };
    for id in [&mut gguf.bos, &mut gguf.eos, &mut gguf.eot, &mut gguf.unk] {
        *id = field().and_then(|id| id.parse().ok());
    }
    for flag in [
        &mut gguf.add_bos,
        &mut gguf.add_eos,
        &mut gguf.add_space_prefix,
    ] {
        *flag = field().and_then(|flag| flag.parse().ok());
    }
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let mut parts = line.splitn(3, ' ');
        gguf.token_types
            .extend(parts.next().and_then(|kind| kind.parse::<i32>().ok()));
        gguf.scores
            .extend(parts.next().and_then(|score| score.parse::<f32>().ok()));
        gguf.tokens.extend(parts.next().map(str::to_owned));
    }
    gguf.merges = lines.map(str::to_owned).collect();
    gguf
}
