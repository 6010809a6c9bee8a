//! Rows of activations in a file: as many as the calibration has tokens, whatever memory there is.
//!
//! Reads and writes go through the system's cache, which keeps them in memory where that is free.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::shards::{WriteError, io_error};

/// Rows of `width` floats.
pub struct RowStore {
    file: File,
    path: PathBuf,
    width: usize,
}

impl RowStore {
    /// Opens or makes a file of rows; what is in it stays.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(path: &Path, width: usize) -> Result<RowStore, WriteError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(io_error(path))?;
        Ok(RowStore {
            file,
            path: path.to_owned(),
            width,
        })
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Reads whole rows from `row` on.
    ///
    /// # Errors
    /// When the file has fewer, or cannot be read.
    pub fn read(&self, row: usize, out: &mut [f32]) -> Result<(), WriteError> {
        let mut bytes = vec![0; (out.len() * 4).min(PART)];
        let mut at = self.offset(row);
        for out in out.chunks_mut(PART / 4) {
            let bytes = &mut bytes[..out.len() * 4];
            let read = self.file.read_exact_at(bytes, at);
            read.map_err(io_error(&self.path))?;
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Writes whole rows from `row` on.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, row: usize, values: &[f32]) -> Result<(), WriteError> {
        let mut bytes = Vec::with_capacity((values.len() * 4).min(PART));
        let mut at = self.offset(row);
        for values in values.chunks(PART / 4) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            let written = self.file.write_all_at(&bytes, at);
            written.map_err(io_error(&self.path))?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// What to wait for until everything written is on the disk, for another thread to do.
    ///
    /// # Errors
    /// When the file cannot be named twice.
    pub(crate) fn sync_later(&self) -> Result<(File, PathBuf), WriteError> {
        let file = self.file.try_clone().map_err(io_error(&self.path))?;
        Ok((file, self.path.clone()))
    }

    fn offset(&self, row: usize) -> u64 {
        (row * self.width * 4) as u64
    }
}

/// Bytes that are converted at a time.
const PART: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        let store = RowStore::open(&path, 3).unwrap();
        store.write(2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        store.write(0, &[-1.0; 6]).unwrap();
        drop(store);
        let store = RowStore::open(&path, 3).unwrap();
        let mut rows = [0.0; 6];
        store.read(1, &mut rows).unwrap();
        assert_eq!(rows, [-1.0, -1.0, -1.0, 1.0, 2.0, 3.0]);
        assert!(store.read(3, &mut rows).is_err());
        let many: Vec<f32> = (0..300_000).map(|i| i as f32).collect();
        store.write(0, &many).unwrap();
        let mut back = vec![0.0; many.len()];
        store.read(0, &mut back).unwrap();
        assert_eq!(back, many);
    }
}
