//! safetensors shards that are written as their tensors are made.
//!
//! Everything about a shard but its values is known before the first one: so its header goes first,
//! and each tensor to its place whenever it is there, in any order, twice if a run was interrupted.
//! A shard has its final name only once it is whole and on the disk. A GGUF file is a shard with
//! another header.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::pack::OutTensor;

/// Bytes of data after which a shard is full.
pub const SHARD_BYTES: usize = 4 << 30;

/// Where every tensor goes.
#[derive(Clone, Debug)]
pub struct Layout {
    shards: Vec<Shard>,
    places: HashMap<String, Place>,
}

#[derive(Clone, Debug)]
struct Shard {
    name: String,
    /// Length, JSON, padding.
    header: Vec<u8>,
    data_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    shard: usize,
    /// From the start of the file.
    offset: usize,
    bytes: usize,
}

/// An output file that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system would not.
    #[error("writing {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A tensor that the header does not have in this size: a bug.
    #[error("{tensor} has {found} bytes, but the header promises {wanted}")]
    Size {
        /// Its name.
        tensor: String,
        /// Bytes there are.
        found: usize,
        /// Bytes promised.
        wanted: usize,
    },
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> WriteError + '_ {
    move |source| WriteError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Layout {
    /// Distributes tensors over shards of at most about `shard_bytes`, in order.
    pub fn new(tensors: &[OutTensor], shard_bytes: usize) -> Layout {
        let mut parts: Vec<Vec<&OutTensor>> = vec![Vec::new()];
        let mut filled = 0;
        for tensor in tensors {
            if filled > 0 && filled + tensor.bytes() > shard_bytes {
                parts.push(Vec::new());
                filled = 0;
            }
            if let Some(part) = parts.last_mut() {
                part.push(tensor);
            }
            filled += tensor.bytes();
        }
        let count = parts.len();
        let mut places = HashMap::new();
        let mut shards = Vec::with_capacity(count);
        for (s, part) in parts.into_iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", s + 1),
            };
            let (header, data_bytes) = header(&part);
            let mut offset = header.len();
            for tensor in part {
                let bytes = tensor.bytes();
                let place = Place {
                    shard: s,
                    offset,
                    bytes,
                };
                places.insert(tensor.name.clone(), place);
                offset += bytes;
            }
            shards.push(Shard {
                name,
                header,
                data_bytes,
            });
        }
        Layout { shards, places }
    }

    /// One file of another format: its name, what stands before its data, where each tensor begins,
    /// and its size. Gaps between tensors are zeros.
    pub fn single(
        name: &str,
        tensors: &[OutTensor],
        header: Vec<u8>,
        offsets: &[usize],
        file_bytes: usize,
    ) -> Layout {
        let mut places = HashMap::new();
        for (tensor, &offset) in tensors.iter().zip(offsets) {
            let place = Place {
                shard: 0,
                offset,
                bytes: tensor.bytes(),
            };
            places.insert(tensor.name.clone(), place);
        }
        let shard = Shard {
            name: name.to_owned(),
            data_bytes: file_bytes.saturating_sub(header.len()),
            header,
        };
        Layout {
            shards: vec![shard],
            places,
        }
    }

    /// Bytes of all shards, headers included.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(Shard::bytes).sum()
    }

    /// `model.safetensors.index.json`; `None` for a single shard, which needs none.
    pub fn index(&self) -> Option<Value> {
        if self.shards.len() < 2 {
            return None;
        }
        let mut weight_map = Map::new();
        let mut names: Vec<(&String, &Place)> = self.places.iter().collect();
        names.sort();
        for (name, place) in names {
            weight_map.insert(name.clone(), json!(self.shards[place.shard].name));
        }
        let total: usize = self.shards.iter().map(|s| s.data_bytes).sum();
        Some(json!({"metadata": {"total_size": total}, "weight_map": weight_map}))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Place) -> bool {
        (self.shard, self.offset) == (other.shard, other.offset)
    }
}

impl Eq for Place {}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Place) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Place) -> std::cmp::Ordering {
        (self.shard, self.offset).cmp(&(other.shard, other.offset))
    }
}

impl Shard {
    fn bytes(&self) -> usize {
        self.header.len() + self.data_bytes
    }
}

/// The length, the JSON and the padding of a shard's header; and the bytes that follow it.
fn header(tensors: &[&OutTensor]) -> (Vec<u8>, usize) {
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let entry = json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        map.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut json = Value::Object(map).to_string().into_bytes();
    while !json.len().is_multiple_of(8) {
        json.push(b' ');
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    (header, offset)
}

/// Shards being written.
pub struct ShardWriter {
    folder: PathBuf,
    layout: Layout,
    files: Vec<File>,
}

impl ShardWriter {
    /// Creates every shard in `folder` under its name with `.partial`, or goes on with those that
    /// are there.
    ///
    /// # Errors
    /// When a file cannot be made, or the disk has no room for it.
    pub fn open(folder: &Path, layout: Layout) -> Result<ShardWriter, WriteError> {
        let mut files = Vec::with_capacity(layout.shards.len());
        for shard in &layout.shards {
            let path = partial(folder, shard);
            let whole = folder.join(&shard.name);
            if whole.exists() {
                // Interrupted between two final names: it is not final while others are not.
                fs::rename(&whole, &path).map_err(io_error(&whole))?;
            }
            let open = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path);
            let file = open.map_err(io_error(&path))?;
            file.set_len(shard.bytes() as u64)
                .map_err(io_error(&path))?;
            file.write_all_at(&shard.header, 0)
                .map_err(io_error(&path))?;
            files.push(file);
        }
        Ok(ShardWriter {
            folder: folder.to_owned(),
            layout,
            files,
        })
    }

    /// Writes a whole tensor.
    ///
    /// # Errors
    /// When it is not of the size promised, or the disk refuses.
    pub fn write(&self, tensor: &str, bytes: &[u8]) -> Result<(), WriteError> {
        self.write_part(tensor, 0, bytes, bytes.len())
    }

    /// Writes bytes of a tensor from `at` on; `total` is the size that it has.
    ///
    /// # Errors
    /// As [`ShardWriter::write`].
    pub fn write_part(
        &self,
        tensor: &str,
        at: usize,
        bytes: &[u8],
        total: usize,
    ) -> Result<(), WriteError> {
        let place = self.layout.places.get(tensor).copied();
        let wanted = place.map_or(0, |p| p.bytes);
        let Some(place) = place.filter(|p| p.bytes == total && at + bytes.len() <= total) else {
            return Err(WriteError::Size {
                tensor: tensor.to_owned(),
                found: total,
                wanted,
            });
        };
        let path = self.folder.join(&self.layout.shards[place.shard].name);
        let file = &self.files[place.shard];
        let written = file.write_all_at(bytes, (place.offset + at) as u64);
        written.map_err(io_error(&path))
    }

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<(), WriteError> {
        for (file, shard) in self.files.iter().zip(&self.layout.shards) {
            let path = partial(&self.folder, shard);
            file.sync_data().map_err(io_error(&path))?;
        }
        Ok(())
    }

    /// What to wait for, for another thread to do.
    ///
    /// # Errors
    /// When a file cannot be named twice.
    pub(crate) fn syncs(&self) -> Result<Vec<(File, PathBuf)>, WriteError> {
        let files = self.files.iter().zip(&self.layout.shards);
        files
            .map(|(file, shard)| {
                let path = partial(&self.folder, shard);
                let file = file.try_clone().map_err(io_error(&path))?;
                Ok((file, path))
            })
            .collect()
    }

    /// Gives every shard its final name. What was not written before is zeros: the caller knows
    /// that everything was.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> Result<(), WriteError> {
        self.sync()?;
        for shard in &self.layout.shards {
            let (from, to) = (partial(&self.folder, shard), self.folder.join(&shard.name));
            fs::rename(&from, &to).map_err(io_error(&from))?;
        }
        sync_folder(&self.folder)
    }
}

fn partial(folder: &Path, shard: &Shard) -> PathBuf {
    folder.join(format!("{}.partial", shard.name))
}

/// Puts the names in a folder on the disk.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), WriteError> {
    let synced = File::open(folder).and_then(|f| f.sync_all());
    synced.map_err(io_error(folder))
}

/// Replaces a small file as a whole: readers see the old one or the new one.
pub(crate) fn replace_file(path: &Path, contents: &[u8]) -> Result<(), WriteError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let write = || {
        let file = File::create(&partial)?;
        file.write_all_at(contents, 0)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_tensor::DType;

    fn tensor(name: &str, len: usize) -> OutTensor {
        OutTensor {
            name: name.into(),
            dtype: DType::I32,
            shape: vec![len],
        }
    }

    #[test]
    fn shards_fill_up_and_are_named_when_whole() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [
            tensor("b", 10),
            tensor("a", 5),
            tensor("c", 100),
            tensor("d", 1),
        ];
        let layout = Layout::new(&tensors, 64);
        let index = layout.index().unwrap();
        assert_eq!(index["weight_map"]["d"], "model-00003-of-00003.safetensors");
        assert_eq!(index["weight_map"]["a"], "model-00001-of-00003.safetensors");
        assert_eq!(index["metadata"]["total_size"], 464);
        let bytes = layout.bytes();
        let writer = ShardWriter::open(folder.path(), layout.clone()).unwrap();
        writer.write("c", &[7; 400]).unwrap();
        drop(writer); // interrupted
        let writer = ShardWriter::open(folder.path(), layout).unwrap();
        writer.write("a", &[1; 20]).unwrap();
        writer.write_part("b", 8, &[2; 32], 40).unwrap();
        writer.write_part("b", 0, &[3; 8], 40).unwrap();
        writer.write("d", &[4; 4]).unwrap();
        assert!(matches!(
            writer.write("d", &[4; 5]),
            Err(WriteError::Size { .. })
        ));
        assert!(matches!(
            writer.write("e", &[]),
            Err(WriteError::Size { .. })
        ));
        assert!(
            !folder
                .path()
                .join("model-00001-of-00003.safetensors")
                .exists()
        );
        writer.finish().unwrap();
        let mut total = 0;
        for entry in fs::read_dir(folder.path()).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            total += bytes.len();
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
            for (name, value) in [("c", 7), ("a", 1), ("d", 4)] {
                if let Some(offsets) = json[name]["data_offsets"].as_array() {
                    let at = |i: usize| 8 + header + offsets[i].as_u64().unwrap() as usize;
                    assert!(bytes[at(0)..at(1)].iter().all(|b| *b == value));
                }
            }
        }
        assert_eq!(total, bytes);
    }

    #[test]
    fn one_shard_needs_no_index() {
        let layout = Layout::new(&[tensor("a", 5)], 64);
        assert!(layout.index().is_none());
        assert_eq!(layout.shards[0].name, "model.safetensors");
    }
}
