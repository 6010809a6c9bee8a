//! A file's bytes without reading them all: a memory map, or bytes compiled into the program.
//!
//! The only file of this crate with `unsafe` code.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

/// The largest pages in which systems map files, and what the ends of a range are rounded to.
const LARGE_PAGE: usize = 2 << 20;

/// The bytes of one file.
pub(crate) enum Bytes {
    /// Mapped read-only; pages come in when touched.
    Mapped(Mmap),
    /// Part of the program.
    Static(&'static [u8]),
}

impl Bytes {
    /// Maps a file.
    pub fn map(path: &Path) -> io::Result<Bytes> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "is a folder, not a file",
            ));
        }
        if metadata.len() == 0 {
            return Ok(Bytes::Static(&[])); // an empty range cannot be mapped everywhere
        }
        // SAFETY: the map is read-only and never handed out as anything but bytes, for which every
        // content is valid. What no program can rule out is another process changing the file: if
        // it is overwritten, values change under us, which is wrong output but within the bytes; if
        // it is truncated, touching a page past the new end raises SIGBUS, which ends the process
        // rather than reading other memory. Model files are not written while in use; that is a
        // documented condition of serving from them, as in every engine that maps weights.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Bytes::Mapped(map))
    }

    /// All of them.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// Drops the range's pages from this process's resident memory; they are read again from the
    /// file when touched. Best effort: advice that the system refuses changes nothing.
    ///
    /// The system maps files in large pages where it has them so, neighbours of what was touched
    /// included: the range is widened to whole ones, or those would stay.
    pub fn release(&self, range: Range<usize>) {
        let range = range.start / LARGE_PAGE * LARGE_PAGE
            ..range
                .end
                .checked_next_multiple_of(LARGE_PAGE)
                .unwrap_or(range.end);
        if let Some((map, range)) = self.mapped(range) {
            // SAFETY: the map is shared, read-only and backed by a file, so a dropped page comes
            // back with the same bytes; slices into it stay valid. The range was cut to the map.
            let advice = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
            };
            if let Err(error) = advice {
                tracing::debug!(%error, "pages of a consumed tensor could not be dropped");
            }
        }
    }

    /// Asks the system to read the range ahead of use. Best effort.
    pub fn will_need(&self, range: Range<usize>) {
        if let Some((map, range)) = self.mapped(range)
            && let Err(error) = map.advise_range(Advice::WillNeed, range.start, range.len())
        {
            tracing::debug!(%error, "read-ahead was refused");
        }
    }

    /// The map, and the part of `range` that lies in it, if there is any.
    fn mapped(&self, range: Range<usize>) -> Option<(&Mmap, Range<usize>)> {
        match self {
            Bytes::Mapped(map) => {
                let range = range.start..range.end.min(map.len());
                (!range.is_empty()).then_some((map, range))
            }
            Bytes::Static(_) => None,
        }
    }
}
