//! Which files of a repository make a model.

use serde_json::Value;

/// Files beside the weights, fetched where a repository has them.
pub(super) const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Names the shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// What to fetch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The folder: small files, and the shards that the index names.
    Sharded,
    /// The folder: small files, and this one.
    Single(String),
    /// These GGUF files; the first is the one to open.
    Gguf(Vec<String>),
}

/// Picks by what is there; `wanted` names one file. An error says what is missing or ambiguous.
pub(super) fn choose(files: &[String], wanted: Option<&str>) -> Result<Choice, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    if let Some(wanted) = wanted {
        return match wanted {
            _ if !has(wanted) => Err(format!(
                "it has no file {wanted:?}; it has {}",
                some_of(files)
            )),
            _ if wanted.ends_with(".gguf") => Ok(Choice::Gguf(with_parts(wanted, files))),
            _ if wanted.ends_with(".safetensors") => Ok(Choice::Single(wanted.to_owned())),
            _ => Err(format!(
                "{wanted:?} is neither a .gguf nor a .safetensors file"
            )),
        };
    }
    let ending =
        |end: &str| -> Vec<&String> { files.iter().filter(|f| f.ends_with(end)).collect() };
    if has(INDEX) {
        return Ok(Choice::Sharded);
    }
    if has(SINGLE) {
        return Ok(Choice::Single(SINGLE.to_owned()));
    }
    if let [only] = ending(".safetensors").as_slice() {
        return Ok(Choice::Single((*only).clone()));
    }
    let ggufs = ending(".gguf");
    let firsts: Vec<&&String> = ggufs
        .iter()
        .filter(|f| part(f).is_none_or(|(_, n, _)| n == 1))
        .collect();
    match firsts.as_slice() {
        [only] => Ok(Choice::Gguf(with_parts(only, files))),
        [] => Err(format!(
            "it has neither safetensors nor GGUF weights; it has {}",
            some_of(files)
        )),
        several => {
            let names: Vec<&str> = several.iter().map(|f| f.as_str()).collect();
            Err(format!(
                "it has several GGUF files; name one after a colon: {}",
                names.join(", ")
            ))
        }
    }
}

/// The shards that an index names.
pub(super) fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    let json: Value = serde_json::from_slice(index).map_err(|e| format!("{INDEX}: {e}"))?;
    let map = json["weight_map"]
        .as_object()
        .ok_or(format!("{INDEX} has no \"weight_map\""))?;
    let mut shards: Vec<String> = map
        .values()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

/// `PREFIX-00001-of-00003.gguf` as prefix, part, and number of parts.
fn part(name: &str) -> Option<(&str, u32, &str)> {
    let (rest, parts) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, part) = rest.rsplit_once('-')?;
    (part.len() == 5 && parts.len() == 5).then_some(())?;
    Some((prefix, part.parse().ok()?, parts))
}

/// A GGUF with the other parts of it, the first part first.
fn with_parts(name: &str, files: &[String]) -> Vec<String> {
    let Some((prefix, _, parts)) = part(name) else {
        return vec![name.to_owned()];
    };
    let same = |f: &&String| part(f).is_some_and(|(p, _, n)| p == prefix && n == parts);
    let mut all: Vec<String> = files.iter().filter(same).cloned().collect();
    all.sort_unstable();
    all
}

fn some_of(files: &[String]) -> String {
    let shown: Vec<&str> = files.iter().take(12).map(String::as_str).collect();
    match files.len() - shown.len() {
        0 if shown.is_empty() => "no files".to_owned(),
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn safetensors_go_before_gguf() {
        let both = files(&["a.gguf", "b.gguf", "model.safetensors", "x.safetensors"]);
        assert_eq!(choose(&both, None), Ok(Choice::Single(SINGLE.to_owned())));
        assert_eq!(
            choose(&both, Some("b.gguf")),
            Ok(Choice::Gguf(files(&["b.gguf"])))
        );
        assert_eq!(
            choose(&files(&[INDEX, "1.safetensors"]), None),
            Ok(Choice::Sharded)
        );
    }

    #[test]
    fn parts_of_a_split_gguf_come_together() {
        let parts = files(&["q/m-00002-of-00002.gguf", "q/m-00001-of-00002.gguf"]);
        let sorted = Choice::Gguf(files(&[
            "q/m-00001-of-00002.gguf",
            "q/m-00002-of-00002.gguf",
        ]));
        assert_eq!(choose(&parts, None).unwrap(), sorted);
        assert_eq!(choose(&parts, Some(&parts[0])).unwrap(), sorted);
    }

    #[test]
    fn what_cannot_be_chosen_says_why() {
        let why = |names: &[&str], wanted| choose(&files(names), wanted).unwrap_err();
        assert!(why(&["a.gguf", "b.gguf"], None).contains("a.gguf, b.gguf"));
        assert!(why(&["pytorch_model.bin"], None).contains("pytorch_model.bin"));
        assert!(why(&["a.gguf"], Some("c.gguf")).contains("\"c.gguf\""));
        assert!(why(&["README.md"], Some("README.md")).contains("neither"));
        assert!(why(&[], None).contains("no files"));
    }
}
