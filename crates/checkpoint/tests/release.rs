//! Consumed tensors leave resident memory. Alone in its process: it reads the process's own count.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::safetensors;
use scrimp_checkpoint::Checkpoint;

const MIB: usize = 1 << 20;

/// Resident bytes that are backed by files.
fn resident_file_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssFile:")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 1024
}

#[test]
fn memory_stays_bounded_while_a_model_is_read_through() {
    let entry = |i: usize| {
        let (begin, end) = (i * 8 * MIB, (i + 1) * 8 * MIB);
        format!(
            r#""t{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#,
            8 * MIB
        )
    };
    let entries: Vec<String> = (0..16).map(entry).collect();
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(
        &path,
        safetensors(&format!("{{{}}}", entries.join(",")), 128 * MIB),
    )
    .unwrap();

    let checkpoint = Checkpoint::open(&path).unwrap();
    let before = resident_file_bytes();
    let mut most = 0;
    let mut sums = Vec::new();
    for (name, tensor) in checkpoint.tensors() {
        sums.push(tensor.bytes.iter().map(|&b| u64::from(b)).sum::<u64>());
        most = most.max(resident_file_bytes());
        checkpoint.release(name);
    }
    let grown = most - before;
    assert!(
        grown >= 8 * MIB,
        "reading must have brought pages in, grew by {grown}"
    );
    assert!(
        grown < 40 * MIB,
        "128 MiB were read, and {grown} bytes stayed resident"
    );
    // Released pages come back with their values.
    let again = checkpoint.get("t3").unwrap();
    assert_eq!(
        again.bytes.iter().map(|&b| u64::from(b)).sum::<u64>(),
        sums[3]
    );
}
