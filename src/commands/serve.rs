//! `scrimp serve`: the OpenAI-compatible API in front of one model.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use scrimp_memory::bytes::HumanBytes;
use scrimp_server::{Ending, Metrics, ServerConfig};

use crate::args::ServeArgs;
use crate::launch::{Settings, launch};
use crate::{machine, opened, prompting, terminal};

/// Memory that the largest bodies take on their way to tokens, for each byte that one may have:
/// four are received at once and two of those are made into prompts (the JSON, its values, the
/// conversation, the rendered text, its pieces). Measured at 24 on texts of 16 MiB.
const BYTES_PER_BODY_BYTE: usize = 24;

/// What the HTTP side takes once it has answered: two threads, routes, buffers, its code.
/// Measured at 2.6 to 3.9 MiB.
const SERVICE_BYTES: usize = 13 << 18;

/// Bytes of a body that can be worth reading: 64 for each token of the longest context, where
/// text takes four or so, and never less than 1 MiB. What is longer could only be refused, and
/// would take memory that was planned for something else until then.
fn useful_body_bytes(max_model_len: usize) -> usize {
    max_model_len.saturating_mul(64).max(1 << 20)
}

/// Runs until SIGTERM or SIGINT.
pub fn serve(args: &ServeArgs) -> Result<()> {
    let opened = opened::open(&args.model.model)?;
    let mut names = args.served_model_name.clone();
    if names.is_empty() {
        names.push(opened.name.clone());
    }
    let default_sampling = prompting::sampling(&opened);
    default_sampling
        .validate(opened.config.vocab_size)
        .context("generation_config.json")?;
    let metrics = Metrics::new(&names[0]);
    let mut settings = Settings::new(&args.model, &args.cache);
    let longest = settings
        .max_model_len
        .unwrap_or(opened.config.max_position_embeddings);
    let max_body_bytes = args.max_body_bytes.min(useful_body_bytes(longest));
    settings.service_bytes = SERVICE_BYTES;
    settings.request_bytes = max_body_bytes.saturating_mul(BYTES_PER_BODY_BYTE);
    let launched = launch(
        &opened,
        &settings,
        args.max_queue,
        Some(metrics.step_observer()),
    )?;
    let info = launched.handle.info();
    terminal::note(&info.device);
    terminal::note(&info.plan.to_string());
    let config = ServerConfig {
        address: SocketAddr::from((args.host, args.port)),
        api_key: args.api_key.clone(),
        served_model_names: names,
        default_sampling,
        max_body_bytes,
        max_queue: args.max_queue,
        request_timeout: Some(Duration::from_secs(args.request_timeout)),
        grace_period: Duration::from_secs(args.shutdown_grace),
        ..ServerConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the server's threads")?;
    let handle = launched.handle.clone();
    let ending = runtime.block_on(scrimp_server::serve(
        config,
        handle,
        opened.text.clone(),
        metrics,
        |address| {
            let how = if std::io::stderr().is_terminal() {
                " (Ctrl-C stops)"
            } else {
                ""
            };
            terminal::note(&format!("listening on http://{address}{how}"));
        },
    ))?;
    if ending == Ending::CutOff {
        terminal::note("the grace period is over: unfinished requests were cut off");
    }
    if let Some(peak) = machine::peak_rss() {
        let stats = launched.handle.stats();
        terminal::note(&format!(
            "peak memory {} ({peak} bytes); {} ({} bytes) was planned for the {} of {} blocks that were used",
            HumanBytes(peak),
            HumanBytes(launched.planned_peak_bytes()),
            launched.planned_peak_bytes(),
            stats.blocks_touched,
            stats.blocks_total,
        ));
    }
    launched.stop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_as_long_as_a_context_can_use() {
        assert_eq!(useful_body_bytes(1024), 1 << 20);
        assert_eq!(useful_body_bytes(65_536), 4 << 20);
        assert_eq!(useful_body_bytes(usize::MAX), usize::MAX);
    }
}
