//! The three requests that a download takes: list a repository, ask about a file, read it from an
//! offset.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::cache::is_relative;
use super::{HubError, HubId, HubSettings, cache};

/// Longest listing: far above the largest repositories.
const MAX_LISTING: u64 = 64 << 20;
/// Redirects within the hub that are followed before a file is asked about.
const MAX_MOVES: usize = 5;

/// A hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    authorization: Option<String>,
}

/// What a repository has at a revision.
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// What the hub says of a file before it is read.
pub(super) struct FileInfo {
    /// Where the hub has it now: a renamed repository's files move.
    pub url: String,
    pub etag: String,
    pub size: u64,
}

/// A file's bytes from some offset on.
pub(super) struct Stream {
    /// Where they begin: 0 when the server would not skip.
    pub offset: u64,
    pub reader: Box<dyn Read>,
}

impl Client {
    pub fn new(settings: &HubSettings) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("scrimp/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Client {
            agent: config.new_agent(),
            endpoint: settings.endpoint.clone(),
            authorization: settings
                .token
                .as_ref()
                .map(|token| format!("Bearer {token}")),
        }
    }

    /// The address of a file at a commit.
    fn file_url(&self, repo: &str, commit: &str, file: &str) -> String {
        let file: Vec<String> = file.split('/').map(encoded).collect();
        format!(
            "{}/{repo}/resolve/{commit}/{}",
            self.endpoint,
            file.join("/")
        )
    }

    /// The files of a repository, and the commit its revision stands for.
    pub fn list(&self, id: &HubId) -> Result<Listing, HubError> {
        let revision = encoded(&id.revision);
        let url = format!(
            "{}/api/models/{}/revision/{revision}",
            self.endpoint, id.repo
        );
        let mut response = self.call(&url, |agent| {
            let request = agent.get(&url);
            match &self.authorization {
                Some(bearer) => request.header("authorization", bearer).call(),
                None => request.call(),
            }
        })?;
        let wrong = |why: String| HubError::Answer {
            url: url.clone(),
            why,
        };
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_LISTING)
            .read_to_string();
        let body = body.map_err(|error| unreachable(&url, &error))?;
        let json: Value = serde_json::from_str(&body).map_err(|error| wrong(error.to_string()))?;
        let commit = json["sha"].as_str().filter(|sha| cache::is_blob_name(sha));
        let files = json["siblings"].as_array();
        let (Some(commit), Some(files)) = (commit, files) else {
            return Err(wrong("it lacks \"sha\" or \"siblings\"".to_owned()));
        };
        let names = files.iter().filter_map(|file| file["rfilename"].as_str());
        Ok(Listing {
            commit: commit.to_owned(),
            // A name that leaves the folder is nothing we would ask for.
            files: names
                .filter(|name| is_relative(name))
                .map(str::to_owned)
                .collect(),
        })
    }

    /// Size and identity of a file.
    pub fn info(&self, repo: &str, commit: &str, file: &str) -> Result<FileInfo, HubError> {
        let mut url = self.file_url(repo, commit, file);
        for _ in 0..MAX_MOVES {
            let response = self.call(&url, |agent| {
                let request = agent.head(&url).header("accept-encoding", "identity");
                let request = match &self.authorization {
                    Some(bearer) => request.header("authorization", bearer),
                    None => request,
                };
                // A redirect to storage would answer for itself: what it stores is named here.
                request
                    .config()
                    .max_redirects(0)
                    .max_redirects_will_error(false)
                    .build()
                    .call()
            })?;
            let headers = response.headers();
            let moved =
                text(headers, "location").filter(|to| to.starts_with('/') && !to.starts_with("//"));
            match moved {
                Some(path) => url = format!("{}{path}", self.origin()),
                None => return file_info(&url, headers),
            }
        }
        Err(HubError::Answer {
            url,
            why: format!("it moved more than {MAX_MOVES} times"),
        })
    }

    /// Opens a file for reading from byte `offset` on.
    pub fn read_from(&self, url: &str, offset: u64) -> Result<Stream, HubError> {
        let response = self.call(url, |agent| {
            let mut request = agent.get(url).header("accept-encoding", "identity");
            if let Some(bearer) = &self.authorization {
                request = request.header("authorization", bearer); // dropped on redirect
            }
            if offset > 0 {
                request = request.header("range", format!("bytes={offset}-"));
            }
            request.call()
        })?;
        let range = text(response.headers(), "content-range");
        let begins = range
            .and_then(|range| range.strip_prefix("bytes "))
            .and_then(|range| range.split_once('-'))
            .and_then(|(begin, _)| begin.parse::<u64>().ok());
        let offset = match (response.status().as_u16(), begins) {
            (206, Some(begins)) if begins == offset => offset,
            (206, _) => {
                let why = format!("asked for bytes from {offset}, it sent {range:?}");
                let url = url.to_owned();
                return Err(HubError::Answer { url, why });
            }
            _ => 0,
        };
        Ok(Stream {
            offset,
            reader: Box::new(response.into_body().into_reader()),
        })
    }

    /// Sends a request; statuses from 400 on become errors with the hub's own words.
    fn call(
        &self,
        url: &str,
        send: impl FnOnce(&Agent) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, HubError> {
        let response = send(&self.agent).map_err(|error| unreachable(url, &error))?;
        let status = response.status().as_u16();
        if status < 400 {
            return Ok(response);
        }
        let message = text(response.headers(), "x-error-message").unwrap_or_default();
        let (url, message) = (url.to_owned(), message.chars().take(200).collect());
        Err(match status {
            401 | 403 => HubError::Refused {
                url,
                status,
                message,
            },
            404 => HubError::NotFound { url, message },
            _ => HubError::Status {
                url,
                status,
                message,
            },
        })
    }

    /// Scheme and host of the endpoint, which a relative redirect is relative to.
    fn origin(&self) -> &str {
        let host = self.endpoint.find("://").map_or(0, |i| i + 3);
        match self.endpoint[host..].find('/') {
            Some(path) => &self.endpoint[..host + path],
            None => &self.endpoint,
        }
    }
}

/// Large files are stored elsewhere: what they are is in the hub's own `x-linked-*` headers.
fn file_info(url: &str, headers: &HeaderMap) -> Result<FileInfo, HubError> {
    let etag = text(headers, "x-linked-etag").or(text(headers, "etag"));
    let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
    let size = text(headers, "x-linked-size").or(text(headers, "content-length"));
    match (
        etag.filter(|etag| cache::is_blob_name(etag)),
        size.and_then(|s| s.parse().ok()),
    ) {
        (Some(etag), Some(size)) => Ok(FileInfo {
            url: url.to_owned(),
            etag: etag.to_owned(),
            size,
        }),
        _ => Err(HubError::Answer {
            url: url.to_owned(),
            why: "it names neither a usable etag nor a length".to_owned(),
        }),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn unreachable(url: &str, error: &ureq::Error) -> HubError {
    HubError::Unreachable {
        url: url.to_owned(),
        reason: error.to_string(),
    }
}

/// One segment of an address, percent-encoded.
fn encoded(segment: &str) -> String {
    segment.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}
