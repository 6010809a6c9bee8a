//! Finding a model's files under a path, and opening them together.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use scrimp_model::Metadata;
use serde_json::Value;

use crate::checkpoint::WeightFile;
use crate::mmap::Bytes;
use crate::{
    Checkpoint, CheckpointError, Format, ModelFiles, parse_gguf_header, parse_safetensors_header,
};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Parts that a split GGUF may have.
const MAX_PARTS: usize = 10_000;

impl Checkpoint {
    /// Opens a model: a `.safetensors` file, a `.gguf` file (any part of a split one), or a folder
    /// with either.
    ///
    /// # Errors
    /// When nothing is found there, or a file is damaged, missing or at odds with the others.
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        let metadata = std::fs::metadata(path).map_err(|source| io(path, source))?;
        if metadata.is_dir() {
            return open_folder(path);
        }
        match extension(path) {
            "gguf" => open_gguf(path),
            "safetensors" => {
                let folder = path.parent().unwrap_or(Path::new("."));
                let file = safetensors(path.to_owned(), map(path)?)?;
                Checkpoint::new(
                    Format::Safetensors,
                    vec![file],
                    ModelFiles::folder(folder),
                    None,
                )
            }
            _ => Err(not_a_model(
                path,
                "a file has to end in .gguf or .safetensors",
            )),
        }
    }

    /// Opens a model compiled into the program: either one `.gguf`, or `.safetensors` files and a
    /// `config.json`. Nothing is copied.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_static(
        files: &[(&'static str, &'static [u8])],
    ) -> Result<Checkpoint, CheckpointError> {
        let with = |wanted: &'static str| {
            let matching = move |(name, _): &&(&'static str, &'static [u8])| {
                extension(Path::new(name)) == wanted
            };
            files.iter().filter(matching)
        };
        let model_files = ModelFiles::from_static(files);
        if let Some((name, bytes)) = with("gguf").next() {
            let (file, metadata) = gguf(PathBuf::from(name), Bytes::Static(bytes))?;
            return Checkpoint::new(Format::Gguf, vec![file], model_files, Some(metadata));
        }
        let weights = with("safetensors")
            .map(|(name, bytes)| safetensors(PathBuf::from(name), Bytes::Static(bytes)))
            .collect::<Result<Vec<_>, _>>()?;
        if weights.is_empty() {
            let built_in = Path::new("the built-in model");
            return Err(not_a_model(
                built_in,
                "there is neither a .gguf nor a .safetensors in it",
            ));
        }
        Checkpoint::new(Format::Safetensors, weights, model_files, None)
    }
}

fn open_folder(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    let files = ModelFiles::folder(folder);
    if let Some(index) = files.json(INDEX)? {
        let weights = open_shards(folder, &index)?;
        return Checkpoint::new(Format::Safetensors, weights, files, None);
    }
    let mut names = list(folder)?;
    names.sort_unstable();
    let ending = |end: &str| -> Vec<&String> {
        names
            .iter()
            .filter(|n| extension(Path::new(n)) == end)
            .collect()
    };
    let (safetensors_files, ggufs) = (ending("safetensors"), ending("gguf"));
    // A file of another name may be anything; it is the model if there is no other candidate.
    let lone = safetensors_files.first();
    let lone = lone.filter(|_| safetensors_files.len() == 1 && ggufs.is_empty());
    let single = safetensors_files.iter().find(|n| **n == SINGLE).or(lone);
    if let Some(name) = single {
        return Checkpoint::open(&folder.join(name));
    }
    if safetensors_files.len() > 1 && ggufs.is_empty() {
        let why = format!(
            "it has {} .safetensors files and no {INDEX} that says how they belong together",
            safetensors_files.len()
        );
        return Err(not_a_model(folder, why));
    }
    // Parts of one split file count once.
    let firsts: Vec<&&String> = ggufs
        .iter()
        .filter(|n| split_name(n).is_none_or(|split| split.part == 1))
        .collect();
    match firsts.as_slice() {
        [name] => open_gguf(&folder.join(name)),
        [] => Err(not_a_model(folder, nothing_found(&names))),
        several => {
            let listed: Vec<&str> = several.iter().map(|n| n.as_str()).collect();
            let why = format!("it has several GGUF files, name one: {}", listed.join(", "));
            Err(not_a_model(folder, why))
        }
    }
}

fn nothing_found(names: &[String]) -> String {
    let pickled = names
        .iter()
        .any(|n| matches!(extension(Path::new(n)), "bin" | "pth" | "pt"));
    let hint = if pickled {
        "; its weights are in pickle files, which can run code: convert them to safetensors"
    } else {
        ""
    };
    format!("there is no {INDEX}, no .safetensors and no .gguf in it{hint}")
}

fn list(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = std::fs::read_dir(folder).map_err(|source| io(folder, source))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| io(folder, source))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// Opens every shard that the index names, and holds both against each other.
fn open_shards(folder: &Path, index: &Value) -> Result<Vec<WeightFile>, CheckpointError> {
    let path = folder.join(INDEX);
    let wrong = |why: String| CheckpointError::Index {
        file: path.clone(),
        why,
    };
    let map_of_weights = index["weight_map"].as_object();
    let Some(weight_map) = map_of_weights.filter(|map| !map.is_empty()) else {
        return Err(wrong(
            "it has no \"weight_map\" from tensors to files".to_owned(),
        ));
    };
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in weight_map {
        let Some(shard) = shard.as_str().filter(|shard| is_file_name(shard)) else {
            return Err(wrong(format!(
                "{tensor:?} is in {shard}, which is no name of a file in this folder"
            )));
        };
        shards.entry(shard).or_default().push(tensor);
    }
    let mut weights = Vec::new();
    for (shard, tensors) in shards {
        let path = folder.join(shard);
        if !path.exists() {
            return Err(CheckpointError::MissingShard {
                folder: folder.to_owned(),
                shard: shard.to_owned(),
                tensors: tensors.len(),
            });
        }
        let file = safetensors(path.clone(), map(&path)?)?;
        check_shard(&file, &tensors)?;
        weights.push(file);
    }
    Ok(weights)
}

fn check_shard(file: &WeightFile, listed: &[&str]) -> Result<(), CheckpointError> {
    let held: HashSet<&str> = file.tensors.iter().map(|t| t.name.as_str()).collect();
    let listed: HashSet<&str> = listed.iter().copied().collect();
    let missing = sorted(listed.difference(&held));
    if !missing.is_empty() {
        return Err(CheckpointError::NotInShard {
            shard: file.path.clone(),
            names: missing,
        });
    }
    let surplus = sorted(held.difference(&listed));
    if !surplus.is_empty() {
        return Err(CheckpointError::NotInIndex {
            shard: file.path.clone(),
            names: surplus,
        });
    }
    Ok(())
}

fn sorted<'a>(names: impl Iterator<Item = &'a &'a str>) -> Vec<String> {
    let mut names: Vec<String> = names.map(|name| (*name).to_owned()).collect();
    names.sort_unstable();
    names
}

/// A plain name: an index from elsewhere must not make us open files outside the folder.
fn is_file_name(name: &str) -> bool {
    Path::new(name)
        .file_name()
        .is_some_and(|plain| plain == name)
}

/// A part of a split GGUF: `PREFIX-00001-of-00003.gguf`.
struct SplitName<'a> {
    prefix: &'a str,
    part: usize,
    parts: usize,
}

fn split_name(name: &str) -> Option<SplitName<'_>> {
    let five = |digits: &str| match digits.len() {
        5 => digits
            .parse::<usize>()
            .ok()
            .filter(|_| digits.bytes().all(|b| b.is_ascii_digit())),
        _ => None,
    };
    let stem = name.strip_suffix(".gguf")?;
    let (rest, parts) = stem.rsplit_once("-of-")?;
    let (prefix, part) = rest.rsplit_once('-')?;
    let (part, parts) = (five(part)?, five(parts)?);
    (1..=parts).contains(&part).then_some(SplitName {
        prefix,
        part,
        parts,
    })
}

fn open_gguf(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let (weights, metadata) = match split_name(name) {
        Some(split) if split.parts > 1 => open_parts(path, &split)?,
        _ => {
            let (file, metadata) = gguf(path.to_owned(), map(path)?)?;
            let count = metadata.unsigned("split.count").unwrap_or(1);
            if count > 1 {
                let why = format!(
                    "it is one of {count} parts of a model, but its name does not end in \
                     -00001-of-{count:05}.gguf, so the others cannot be found"
                );
                return Err(split_error(path, why));
            }
            (vec![file], metadata)
        }
    };
    Checkpoint::new(Format::Gguf, weights, ModelFiles::none(), Some(metadata))
}

/// Opens all parts; the first one's key-values are the model's.
fn open_parts(
    path: &Path,
    split: &SplitName,
) -> Result<(Vec<WeightFile>, Metadata), CheckpointError> {
    if split.parts > MAX_PARTS {
        return Err(split_error(
            path,
            format!(
                "{} parts are more than the {MAX_PARTS} allowed",
                split.parts
            ),
        ));
    }
    let mut weights = Vec::new();
    let mut first = None;
    for part in 1..=split.parts {
        let name = format!("{}-{part:05}-of-{:05}.gguf", split.prefix, split.parts);
        let path = path.with_file_name(name);
        if !path.exists() {
            let why = format!("part {part} of {} is missing", split.parts);
            return Err(split_error(&path, why));
        }
        let bytes = map(&path)?;
        let (file, metadata) = gguf(path, bytes)?;
        for (key, wanted) in [("split.count", split.parts), ("split.no", part - 1)] {
            let found = metadata.unsigned(key);
            if found != Some(wanted as u64) {
                let found = found.map_or("absent".to_owned(), |found| found.to_string());
                let why = format!("by its name, {key} should be {wanted}, but it is {found}");
                return Err(split_error(&file.path, why));
            }
        }
        weights.push(file);
        first.get_or_insert(metadata);
    }
    let metadata = first.unwrap_or_default();
    let held: usize = weights.iter().map(|w: &WeightFile| w.tensors.len()).sum();
    match metadata.unsigned("split.tensors.count") {
        Some(wanted) if wanted != held as u64 => {
            let why = format!("split.tensors.count is {wanted}, but the parts hold {held} tensors");
            Err(split_error(path, why))
        }
        _ => Ok((weights, metadata)),
    }
}

fn safetensors(path: PathBuf, bytes: Bytes) -> Result<WeightFile, CheckpointError> {
    match parse_safetensors_header(bytes.as_slice()) {
        Ok(header) => Ok(WeightFile {
            path,
            tensors: header.tensors,
            bytes,
        }),
        Err(source) => Err(CheckpointError::Safetensors { file: path, source }),
    }
}

fn gguf(path: PathBuf, bytes: Bytes) -> Result<(WeightFile, Metadata), CheckpointError> {
    match parse_gguf_header(bytes.as_slice()) {
        Ok(header) => {
            let file = WeightFile {
                path,
                tensors: header.tensors,
                bytes,
            };
            Ok((file, header.metadata))
        }
        Err(source) => Err(CheckpointError::Gguf { file: path, source }),
    }
}

fn map(path: &Path) -> Result<Bytes, CheckpointError> {
    Bytes::map(path).map_err(|source| io(path, source))
}

fn extension(path: &Path) -> &str {
    path.extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
}

fn io(path: &Path, source: std::io::Error) -> CheckpointError {
    CheckpointError::Io {
        file: path.to_owned(),
        source,
    }
}

fn not_a_model(path: &Path, why: impl Into<String>) -> CheckpointError {
    CheckpointError::NotAModel {
        path: path.to_owned(),
        why: why.into(),
    }
}

fn split_error(path: &Path, why: String) -> CheckpointError {
    CheckpointError::Split {
        file: path.to_owned(),
        why,
    }
}
