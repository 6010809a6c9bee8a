//! Reading little-endian values from a byte slice, never past its end.

use super::GgufError;

/// A position in a file.
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(file: &'a [u8]) -> Self {
        Cursor { file, position: 0 }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    pub fn remaining(&self) -> usize {
        self.file.len() - self.position
    }

    /// The next `count` bytes; `what` names them if the file ends before.
    pub fn bytes(&mut self, count: usize, what: &str) -> Result<&'a [u8], GgufError> {
        let rest = &self.file[self.position..];
        let Some(bytes) = rest.get(..count) else {
            return Err(GgufError::Truncated {
                what: what.to_owned(),
                wanted: count as u64,
                position: self.position,
                left: rest.len(),
            });
        };
        self.position += count;
        Ok(bytes)
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let bytes = self.bytes(N, what)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each: no more than the file can hold.
    pub fn count(&mut self, least: usize, what: &str) -> Result<usize, GgufError> {
        let claimed = self.u64(what)?;
        let most = self.remaining() / least;
        match usize::try_from(claimed) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(GgufError::Count {
                what: what.to_owned(),
                claimed,
                most,
            }),
        }
    }

    /// A string of at most `longest` bytes, after its length.
    pub fn text(&mut self, longest: usize, what: &str) -> Result<&'a str, GgufError> {
        let claimed = self.u64(what)?;
        let length = usize::try_from(claimed).ok().filter(|&n| n <= longest);
        let Some(length) = length else {
            return Err(GgufError::Count {
                what: format!("the bytes of {what}"),
                claimed,
                most: longest.min(self.remaining()),
            });
        };
        let bytes = self.bytes(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotText {
            what: what.to_owned(),
            position: self.position - length,
        })
    }
}
