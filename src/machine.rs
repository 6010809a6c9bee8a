//! What this machine has: memory that may be used, cores, and what the process takes of it.
//!
//! The only place that reads the operating system's counters. Everything is best effort: a file
//! that is missing (another system, a stripped container) leaves its limit out.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Limits on memory, in bytes, where they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Tightest control-group limit on this process.
    pub cgroup: Option<usize>,
    /// Memory that can be had without swapping.
    pub available: Option<usize>,
}

impl MemoryLimits {
    /// Reads the limits that hold now.
    pub fn read() -> MemoryLimits {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        MemoryLimits {
            cgroup: cgroup_limit(&cgroups, Path::new("/sys/fs/cgroup")),
            available: field_kib(&meminfo, "MemAvailable:"),
        }
    }

    /// The budget: the least of the limits and of what was asked for.
    ///
    /// Without any of them there is nothing to go by, and so no budget.
    pub fn budget(&self, asked: Option<usize>) -> Option<usize> {
        [self.cgroup, self.available, asked]
            .into_iter()
            .flatten()
            .min()
    }
}

/// The tightest limit along the process's control groups, versions 1 and 2.
fn cgroup_limit(proc_self_cgroup: &str, root: &Path) -> Option<usize> {
    let mut limits = Vec::new();
    for line in proc_self_cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (base, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            c if c.split(',').any(|c| c == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        limits.extend(ancestors(&base, path).filter_map(|dir| limit_in(&dir.join(file))));
    }
    limits.into_iter().min()
}

/// `base/path` and every folder above it, down to `base` itself.
fn ancestors(base: &Path, path: &str) -> impl Iterator<Item = PathBuf> {
    let relative = PathBuf::from(path.trim_start_matches('/'));
    let base = base.to_path_buf();
    relative
        .ancestors()
        .map(|a| base.join(a))
        .collect::<Vec<_>>()
        .into_iter()
}

/// A limit file's number; `max`, and version 1's page-rounded "no limit", are none.
fn limit_in(file: &Path) -> Option<usize> {
    let limit: usize = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (limit < 1 << 60).then_some(limit)
}

/// A `Name:   123 kB` line's value in bytes.
fn field_kib(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Most bytes this process has had resident.
pub fn peak_rss() -> Option<usize> {
    field_kib(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Most bytes another process has had resident at once since it was started or began to count anew.
pub fn peak_rss_of(process: u32) -> Option<usize> {
    field_kib(
        &fs::read_to_string(format!("/proc/{process}/status")).ok()?,
        "VmHWM:",
    )
}

/// Lets [`peak_rss`] start anew from what is resident now; without effect where the system does
/// not allow it.
pub fn reset_peak_rss() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Bytes this process has resident now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Private memory: heap, stacks, weights, cache.
    pub anonymous: usize,
    /// Pages of files: the program, libraries, weights on their way.
    pub files: usize,
}

impl Resident {
    /// Reads what is resident now.
    pub fn read() -> Option<Resident> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        Some(Resident {
            anonymous: field_kib(&status, "RssAnon:")?,
            files: field_kib(&status, "RssFile:")? + field_kib(&status, "RssShmem:").unwrap_or(0),
        })
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.anonymous + self.files
    }
}

/// Bytes of the pages that large allocations ask for, where the system grants such.
pub fn huge_page() -> Option<usize> {
    let folder = Path::new("/sys/kernel/mm/transparent_hugepage");
    let enabled = fs::read_to_string(folder.join("enabled")).ok()?;
    let size = fs::read_to_string(folder.join("hpage_pmd_size")).ok()?;
    let granted = !enabled.contains("[never]");
    size.trim().parse().ok().filter(|_| granted)
}

/// Reads the resident bytes again and again, cheaply: once a step of a small model.
pub struct ResidentNow(Option<fs::File>);

impl ResidentNow {
    /// Finds where to read; without effect where the system has no such place.
    pub fn open() -> ResidentNow {
        ResidentNow(fs::File::open("/proc/self/statm").ok())
    }

    /// Bytes resident now.
    pub fn read(&mut self) -> Option<usize> {
        let file = self.0.as_mut()?;
        file.seek(SeekFrom::Start(0)).ok()?;
        let mut text = [0; 128];
        let read = file.read(&mut text).ok()?;
        let text = std::str::from_utf8(&text[..read]).ok()?;
        let pages: usize = text.split(' ').nth(1)?.parse().ok()?;
        pages.checked_mul(rustix::param::page_size())
    }
}

/// Bytes of heap in use now, as the allocator handed them out.
pub fn heap() -> usize {
    crate::HEAP.allocated()
}

/// Cores this process may run on.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_ancestor_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("a/memory.max"), "1000000\n").unwrap();
        fs::write(root.path().join("memory.max"), "5000000\n").unwrap();
        assert_eq!(cgroup_limit("0::/a/b\n", root.path()), Some(1_000_000));
        assert_eq!(cgroup_limit("0::/\n", root.path()), Some(5_000_000));
        assert_eq!(cgroup_limit("12:cpu:/a\n", root.path()), None);
    }

    #[test]
    fn version_one_limits_count_unless_they_are_none() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("memory/docker");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("memory.limit_in_bytes"), "2000000").unwrap();
        fs::write(
            root.path().join("memory/memory.limit_in_bytes"),
            "9223372036854771712",
        )
        .unwrap();
        assert_eq!(
            cgroup_limit("5:memory:/docker\n", root.path()),
            Some(2_000_000)
        );
        assert_eq!(cgroup_limit("5:memory:/\n", root.path()), None);
    }

    #[test]
    fn the_budget_is_the_least_of_what_is_known() {
        let limits = MemoryLimits {
            cgroup: Some(30),
            available: Some(20),
        };
        assert_eq!(limits.budget(Some(10)), Some(10));
        assert_eq!(limits.budget(Some(25)), Some(20));
        assert_eq!(MemoryLimits::default().budget(None), None);
    }

    #[test]
    fn both_ways_of_reading_agree() {
        if cfg!(target_os = "linux") {
            let mut now = ResidentNow::open();
            let (quick, exact) = (now.read().unwrap(), Resident::read().unwrap().total());
            assert!(now.read().is_some(), "it can be read again");
            // Counters lag by a few pages a core, and other tests allocate meanwhile.
            assert!(quick.abs_diff(exact) < 16 << 20, "{quick} {exact}");
        }
    }

    #[test]
    fn this_process_is_resident() {
        if cfg!(target_os = "linux") {
            // In this order: other tests allocate meanwhile.
            let current = Resident::read().unwrap().total();
            assert!(peak_rss().unwrap() >= current);
        }
    }
}
