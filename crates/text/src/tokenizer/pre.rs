//! The splitting rules that GGUF files name in `tokenizer.ggml.pre`.
//!
//! A GGUF file holds only the name; the regular expressions below are those of the models' own
//! tokenizer.json, or the ones llama.cpp uses where a model has none. Rules run in order, each on
//! the pieces of the one before; matches and the text between them are both kept.

/// A named pre-tokenizer.
pub(super) struct PreTokenizer {
    /// Regular expressions, in order.
    pub patterns: &'static [&'static str],
    /// Whether a piece that is a token as a whole is taken without merging (Llama 3).
    pub ignore_merges: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// Letters of the scripts that have upper and lower case, as DeepSeek LLM lists them.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}ℂℇℊ-ℓℕℙ-ℝ\x{2124}\x{2126}\x{2128}\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Names and their rules; the first name of a row is the commonest.
const TABLE: &[(&[&str], PreTokenizer)] = &[
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        PreTokenizer {
            patterns: &[LLAMA3],
            ignore_merges: true,
        },
    ),
    (
        &["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"],
        PreTokenizer {
            patterns: &[LLAMA3],
            ignore_merges: false,
        },
    ),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "hunyuan",
            "megrez",
            "grok-2",
        ],
        PreTokenizer {
            patterns: &[QWEN2],
            ignore_merges: false,
        },
    ),
    (
        &["qwen35"],
        PreTokenizer {
            patterns: &[QWEN35],
            ignore_merges: false,
        },
    ),
    (
        &["deepseek-v3", "hunyuan-dense"],
        PreTokenizer {
            patterns: &[r"\p{N}{1,3}", "[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK_V3],
            ignore_merges: false,
        },
    ),
    (
        &["deepseek-llm"],
        PreTokenizer {
            patterns: &[
                r"[\r\n]",
                DEEPSEEK_LETTERS,
                r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
                r"\s+$",
                "[一-龥ࠀ-一가-\u{d7ff}]+",
                r"\p{N}+",
            ],
            ignore_merges: false,
        },
    ),
    (
        &["deepseek-coder"],
        PreTokenizer {
            patterns: &[
                r"[\r\n]",
                r"\s?\p{L}+",
                r"\s?\p{P}+",
                "[一-龥ࠀ-一가-\u{d7ff}]+",
                r"\p{N}",
            ],
            ignore_merges: false,
        },
    ),
    (
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        PreTokenizer {
            patterns: &[r"\p{N}", GPT2],
            ignore_merges: false,
        },
    ),
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "roberta-bpe",
        ],
        PreTokenizer {
            patterns: &[GPT2],
            ignore_merges: false,
        },
    ),
    (
        &["falcon"],
        PreTokenizer {
            patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
            ignore_merges: false,
        },
    ),
    (
        &["gpt-4o", "llama4"],
        PreTokenizer {
            patterns: &[GPT4O],
            ignore_merges: false,
        },
    ),
    (
        &["tekken"],
        PreTokenizer {
            patterns: &[TEKKEN],
            ignore_merges: true,
        },
    ),
    (
        &["default"],
        PreTokenizer {
            patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
            ignore_merges: false,
        },
    ),
];

/// The rules of that name.
pub(super) fn named(name: &str) -> Option<&'static PreTokenizer> {
    TABLE
        .iter()
        .find(|(names, _)| names.contains(&name))
        .map(|(_, rules)| rules)
}

/// The commonest name of these rules.
pub(super) fn name_of(patterns: &[String], ignore_merges: bool) -> Option<&'static str> {
    let spelled: Vec<String> = patterns.iter().map(|p| spelled(p)).collect();
    let same = |rules: &PreTokenizer| {
        rules.ignore_merges == ignore_merges
            && rules
                .patterns
                .iter()
                .map(|p| self::spelled(p))
                .eq(spelled.iter().cloned())
    };
    let found = TABLE.iter().find(|(_, rules)| same(rules));
    found.and_then(|(names, _)| names.first().copied())
}

/// A pattern in one spelling: characters that may also be written by number are written out, but
/// for the ends of lines.
fn spelled(pattern: &str) -> String {
    let lines = pattern.replace('\r', "\\r").replace('\n', "\\n");
    let mut parts = lines.split(r"\x{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let known = part.split_once('}').and_then(|(number, rest)| {
            let c = u32::from_str_radix(number, 16)
                .ok()
                .and_then(char::from_u32)?;
            Some((c, rest))
        });
        match known {
            Some((c, rest)) => {
                out.push(c);
                out.push_str(rest);
            }
            None => {
                out.push_str(r"\x{");
                out.push_str(part);
            }
        }
    }
    out
}

/// GPT-2's own pattern, which tokenizer.json's `ByteLevel` implies.
pub(super) const BYTE_LEVEL: &str = GPT2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::split::{Keep, Splitter};

    #[test]
    fn every_pattern_compiles_and_no_name_is_twice() {
        let mut seen = std::collections::HashSet::new();
        for (names, rules) in TABLE {
            names
                .iter()
                .for_each(|name| assert!(seen.insert(name), "{name} twice"));
            for pattern in rules.patterns {
                Splitter::new(pattern, Keep::All).unwrap();
            }
        }
        assert!(named("qwen2").is_some() && named("no-such").is_none());
        for (names, rules) in TABLE {
            let patterns: Vec<String> = rules.patterns.iter().map(|p| (*p).to_owned()).collect();
            assert_eq!(name_of(&patterns, rules.ignore_merges), Some(names[0]));
        }
        assert_eq!(spelled("a\\x{1F5F}-\n"), "a\u{1F5F}-\\n");
    }
}
