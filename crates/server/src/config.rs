//! What the server is told at its start.

use std::net::SocketAddr;
use std::time::Duration;

use scrimp_engine::SamplingParams;

/// Settings of a server. Every limit is there so that no client can take the service away from
/// the others.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Address to listen on; port 0 takes any free one.
    pub address: SocketAddr,
    /// Key that clients must send as a bearer token; `None` lets everybody in.
    pub api_key: Option<String>,
    /// Names under which the model is served, the first being the one that answers carry.
    pub served_model_names: Vec<String>,
    /// How tokens are chosen where a request does not say, such as by the model's
    /// `generation_config.json`. The seed is not used.
    pub default_sampling: SamplingParams,
    /// Most bytes of a request's body.
    pub max_body_bytes: usize,
    /// Most completions that may wait for the engine; more are refused with status 429.
    pub max_queue: usize,
    /// Most connections open at once; more wait to be accepted.
    pub max_connections: usize,
    /// Most time a request may take in all; `None` sets no limit.
    pub request_timeout: Option<Duration>,
    /// Most time a client may take to send a request's head, and again to send its body.
    pub read_timeout: Duration,
    /// Silence in a stream after which a comment is sent, so that proxies keep it open.
    pub keep_alive: Duration,
    /// Most time that running requests get to finish once the server was asked to stop.
    pub grace_period: Duration,
    /// Whether web pages of any origin may use the server.
    pub allow_any_origin: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            address: SocketAddr::from(([127, 0, 0, 1], 8000)),
            api_key: None,
            served_model_names: vec!["scrimp".into()],
            default_sampling: SamplingParams::default(),
            max_body_bytes: 16 << 20,
            max_queue: 1024,
            max_connections: 1024,
            request_timeout: None,
            read_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            grace_period: Duration::from_secs(60),
            allow_any_origin: false,
        }
    }
}

impl ServerConfig {
    /// The name that answers and metrics carry.
    pub fn model_name(&self) -> &str {
        self.served_model_names
            .first()
            .map_or("scrimp", String::as_str)
    }
}
