//! GPT-2's byte alphabet: every byte written as one printable character, so that a BPE over
//! characters is a BPE over bytes.
//!
//! Printable Latin-1 bytes stand for themselves; the other 68 take U+0100 and up, in order.

/// The character that stands for each byte.
pub(super) const CHARS: [char; 256] = alphabet();

/// First character that stands for a byte that is not printable.
const FIRST_SHIFTED: u32 = 256;

const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

const fn alphabet() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let mut shifted = 0;
    let mut byte = 0;
    while byte < 256 {
        chars[byte] = if is_printable(byte as u8) {
            byte as u8 as char
        } else {
            shifted += 1;
            match char::from_u32(FIRST_SHIFTED + shifted - 1) {
                Some(c) => c,
                None => '\0',
            }
        };
        byte += 1;
    }
    chars
}

/// The bytes that are not printable, in order: entry `i` is written U+0100 + i.
const SHIFTED: [u8; 68] = {
    let mut bytes = [0; 68];
    let mut found = 0;
    let mut byte = 0;
    while byte < 256 {
        if !is_printable(byte as u8) {
            bytes[found] = byte as u8;
            found += 1;
        }
        byte += 1;
    }
    bytes
};

/// The byte that `c` stands for, if it stands for one.
fn byte_of(c: char) -> Option<u8> {
    match u8::try_from(c) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => SHIFTED
            .get((c as u32).checked_sub(FIRST_SHIFTED)? as usize)
            .copied(),
    }
}

/// Appends `text` to `out`, byte by byte in the alphabet.
pub(super) fn encode(text: &str, out: &mut String) {
    out.reserve(text.len());
    out.extend(text.bytes().map(|byte| CHARS[byte as usize]));
}

/// Appends the bytes that `token` stands for. A token with any character outside the alphabet
/// (an added token such as `<｜User｜>`) stands for its own UTF-8, as in Hugging Face's decoder.
pub(super) fn decode(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_round_trips_and_known_ones_are_where_gpt2_put_them() {
        assert_eq!(CHARS[b' ' as usize], 'Ġ');
        assert_eq!(CHARS[b'\n' as usize], 'Ċ');
        assert_eq!(CHARS[0xAD], 'Ń');
        for byte in 0..=255u8 {
            assert_eq!(byte_of(CHARS[byte as usize]), Some(byte));
        }
        assert_eq!(byte_of('ń'), None);
        assert_eq!(byte_of(' '), None);
    }

    #[test]
    fn tokens_outside_the_alphabet_stand_for_themselves() {
        let mut out = Vec::new();
        decode("Ġhi", &mut out);
        decode("<｜User｜>", &mut out);
        assert_eq!(out, " hi<｜User｜>".as_bytes());
    }
}
