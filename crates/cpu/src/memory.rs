//! Zeroed, aligned memory of an exact size, and the raw slices that threads share.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use scrimp_backend::BackendError;

/// A cache line, and the width of the widest vector.
const ALIGN: usize = 64;
/// Bytes from which memory is mapped from the system: in zero pages that take no room until they
/// are written, where an aligned zeroed heap allocation writes them all.
/// Small enough that nearly all of a model's matrices are: they then come and go as whole pages,
/// and the heap's leftovers do not blur what they take.
const MAPPED: usize = 64 << 10;
/// Bytes from which memory that is written as a whole asks for huge pages.
#[cfg(target_os = "linux")]
const HUGE: usize = 4 << 20;

/// Values that are valid as all-zero bytes and own nothing.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for f32 {}

/// An owned array on a cache-line boundary.
///
/// Untouched pages of it cost nothing until they are written.
#[derive(Debug)]
pub(crate) struct Aligned<T: Plain> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its memory and `T` is plain.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: shared access reads plain values only.
unsafe impl<T: Plain> Sync for Aligned<T> {}

impl<T: Plain> Aligned<T> {
    /// `len` zeros, for `what`.
    pub(crate) fn zeroed(len: usize, what: &'static str) -> Result<Self, BackendError> {
        let refused = || BackendError::OutOfMemory {
            bytes: len.saturating_mul(size_of::<T>()),
            what,
        };
        let layout = Self::layout(len).ok_or_else(refused)?;
        if layout.size() == 0 {
            let start = NonNull::dangling();
            return Ok(Aligned { start, len: 0 });
        }
        let start = if layout.size() >= MAPPED {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new private mapping, wherever the system puts it.
            let map = unsafe {
                mmap_anonymous(
                    std::ptr::null_mut(),
                    layout.size(),
                    access,
                    MapFlags::PRIVATE,
                )
            };
            map.map_err(|_| refused())?.cast()
        } else {
            // SAFETY: the layout's size is not zero.
            unsafe { alloc_zeroed(layout) }
        };
        let start = NonNull::new(start).ok_or_else(refused)?;
        Ok(Aligned {
            start: start.cast(),
            len,
        })
    }

    /// `len` zeros that are in memory from the start, for what steps are sure to write: what they
    /// take is then known once they are there, and running out of it happens at start.
    pub(crate) fn resident(len: usize, what: &'static str) -> Result<Self, BackendError>
    where
        T: Default,
    {
        let mut array = Self::zeroed(len, what)?;
        if len * size_of::<T>() >= MAPPED {
            array.advise_huge();
            array.as_mut_slice().fill(T::default());
        }
        Ok(array)
    }

    fn layout(len: usize) -> Option<Layout> {
        Layout::array::<T>(len).ok()?.align_to(ALIGN).ok()
    }

    /// Asks for huge pages, for memory that is planned to be written as a whole.
    pub(crate) fn advise_huge(&mut self) {
        #[cfg(target_os = "linux")]
        if self.len * size_of::<T>() >= HUGE {
            let advice = rustix::mm::Advice::LinuxHugepage;
            let bytes = self.len * size_of::<T>();
            // SAFETY: the advice changes no contents; the range is this allocation's own mapping.
            let advised = unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), bytes, advice) };
            // Without huge pages it is as correct, and a little slower.
            let _ = advised;
        }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: `len` plain values, initialised to zero, owned by `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        let Some(layout) = Self::layout(self.len) else {
            return;
        };
        if layout.size() >= MAPPED {
            // SAFETY: mapped in `zeroed` with this very size, and no longer in use.
            let unmapped = unsafe { munmap(self.start.as_ptr().cast(), layout.size()) };
            debug_assert!(unmapped.is_ok(), "unmapping its own mapping");
        } else {
            // SAFETY: allocated in `zeroed` with this very layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
        }
    }
}

/// A mutable slice that several threads write to in disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut [T]`, whose parts threads may own; `slice`'s contract keeps the
// parts apart.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            owner: PhantomData,
        }
    }

    /// The part `from .. from + len`.
    ///
    /// # Safety
    /// No other part handed out meanwhile overlaps it.
    #[allow(clippy::mut_from_ref)] // that is its purpose
    pub(crate) unsafe fn slice(&self, from: usize, len: usize) -> &'a mut [T] {
        assert!(
            from <= self.len && len <= self.len - from,
            "part {from}+{len} of {}",
            self.len
        );
        // SAFETY: within the slice; alone by contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    /// Values in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first value's address, for kernels that write scattered parts.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.start
    }
}
