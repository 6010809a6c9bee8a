//! Fetching a model's files into the cache, going on where an earlier attempt stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::cache::{RepoCache, io_error, make_parent};
use super::client::{Client, FileInfo, Listing};
use super::select::{self, Choice, INDEX, SMALL_FILES};
use super::{HubError, HubId, Progress};

/// Attempts in a row that may bring nothing before giving up.
const ATTEMPTS: u32 = 5;
const CHUNK: usize = 1 << 20;

type Report<'a> = &'a mut dyn FnMut(Progress<'_>);

/// Fetches what makes a model; the result is the folder, or the GGUF file.
pub(super) fn download(
    client: &Client,
    cache: &RepoCache,
    id: &HubId,
    listing: &Listing,
    progress: Report,
) -> Result<PathBuf, HubError> {
    let selection = |why| HubError::Selection {
        repo: id.repo.clone(),
        revision: id.revision.clone(),
        why,
    };
    let choice = select::choose(&listing.files, id.file.as_deref()).map_err(selection)?;
    let mut get = |file: &str| fetch(client, cache, id, &listing.commit, file, progress);
    let snapshot = cache.snapshot(&listing.commit);
    let result = match choice {
        Choice::Gguf(files) => {
            let mut paths = Vec::new();
            for file in &files {
                paths.push(get(file)?);
            }
            paths.into_iter().next().unwrap_or(snapshot)
        }
        Choice::Single(weights) => {
            small_files(listing, &mut get)?;
            let path = get(&weights)?;
            if id.file.is_some() { path } else { snapshot }
        }
        Choice::Sharded => {
            small_files(listing, &mut get)?;
            let index = get(INDEX)?;
            let index = fs::read(&index).map_err(|source| io_error(&index, source))?;
            for shard in select::shards(&index).map_err(selection)? {
                if !listing.files.contains(&shard) {
                    return Err(selection(format!(
                        "its index names {shard:?}, which it does not have"
                    )));
                }
                get(&shard)?;
            }
            snapshot
        }
    };
    cache.set_commit(&id.revision, &listing.commit)?;
    Ok(result)
}

fn small_files(
    listing: &Listing,
    get: &mut impl FnMut(&str) -> Result<PathBuf, HubError>,
) -> Result<(), HubError> {
    for file in SMALL_FILES {
        if listing.files.iter().any(|listed| listed == file) {
            get(file)?;
        }
    }
    Ok(())
}

/// Brings one file into the cache, and gives its path in the snapshot.
fn fetch(
    client: &Client,
    cache: &RepoCache,
    id: &HubId,
    commit: &str,
    file: &str,
    progress: Report,
) -> Result<PathBuf, HubError> {
    let pointer = cache.snapshot(commit).join(file);
    if pointer.exists() {
        return Ok(pointer); // a commit's files never change
    }
    let info = client.info(&id.repo, commit, file)?;
    let _lock = cache.lock(&info.etag)?;
    let blob = cache.blob(&info.etag);
    if !blob.exists() {
        let part = cache.incomplete(&info.etag);
        make_parent(&part)?;
        let open = |offset| client.read_from(&info.url, offset);
        fill(&part, file, &info, open, progress)?;
        verify(&part, file, &info)?;
        fs::rename(&part, &blob).map_err(|source| io_error(&blob, source))?;
    }
    cache.link(commit, file, &info.etag)
}

/// Reads until the file is whole, over as many connections as it takes.
fn fill(
    part: &Path,
    name: &str,
    info: &FileInfo,
    open: impl Fn(u64) -> Result<super::client::Stream, HubError>,
    progress: Report,
) -> Result<(), HubError> {
    let io = |source| io_error(part, source);
    let mut out = OpenOptions::new()
        .append(true)
        .create(true)
        .open(part)
        .map_err(io)?;
    let mut failures = 0;
    loop {
        let mut done = out.metadata().map_err(io)?.len();
        if done > info.size {
            out.set_len(0).map_err(io)?; // of another version: no use
            done = 0;
        }
        progress(Progress::Bytes {
            file: name,
            done,
            total: info.size,
        });
        if done == info.size {
            return Ok(());
        }
        let reason = match open(done) {
            Err(error @ HubError::Unreachable { .. }) => error.to_string(),
            Err(error) => return Err(error),
            Ok(stream) => {
                if stream.offset < done {
                    out.set_len(0).map_err(io)?; // the server does not resume
                    done = 0;
                }
                let before = done;
                let broke = copy(
                    stream.reader,
                    &mut out,
                    part,
                    &mut done,
                    name,
                    info,
                    progress,
                )?;
                if done > info.size {
                    return Err(discard(part, name, done, info.size));
                }
                if done > before {
                    failures = 0;
                }
                broke.unwrap_or_else(|| {
                    format!("the connection closed after {done} of {} bytes", info.size)
                })
            }
        };
        if done == info.size {
            continue; // reports the end, and returns
        }
        failures += 1;
        if failures >= ATTEMPTS {
            return Err(HubError::Unreachable {
                url: name.to_owned(),
                reason,
            });
        }
        progress(Progress::Retry {
            file: name,
            reason: &reason,
        });
        std::thread::sleep(Duration::from_millis(100 << failures));
    }
}

/// Appends what comes until it ends or breaks; the text says how it broke. One byte more than
/// announced is enough to stop.
fn copy(
    mut reader: Box<dyn Read>,
    out: &mut File,
    part: &Path,
    done: &mut u64,
    name: &str,
    info: &FileInfo,
    progress: Report,
) -> Result<Option<String>, HubError> {
    let mut buffer = vec![0; CHUNK];
    while *done <= info.size {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => count,
            Err(error) => return Ok(Some(error.to_string())),
        };
        out.write_all(&buffer[..count])
            .map_err(|source| io_error(part, source))?;
        *done += count as u64;
        progress(Progress::Bytes {
            file: name,
            done: *done,
            total: info.size,
        });
    }
    Ok(None)
}

fn discard(part: &Path, file: &str, found: u64, wanted: u64) -> HubError {
    let _ = fs::remove_file(part);
    HubError::Length {
        file: file.to_owned(),
        found,
        wanted,
    }
}

/// Large files are named by their SHA-256: what was put together from several attempts has to
/// have it.
fn verify(part: &Path, file: &str, info: &FileInfo) -> Result<(), HubError> {
    let is_sha256 = info.etag.len() == 64 && info.etag.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_sha256 {
        return Ok(());
    }
    let io = |source| io_error(part, source);
    let mut reader = File::open(part).map_err(io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match reader.read(&mut buffer).map_err(io)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let found: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if found == info.etag.to_lowercase() {
        return Ok(());
    }
    let _ = fs::remove_file(part);
    Err(HubError::Hash {
        file: file.to_owned(),
        found,
        wanted: info.etag.clone(),
    })
}
