//! This program, started once more for one step.

use std::io::{BufRead, BufReader, IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::interrupt::{self, Interrupt};
use crate::{machine, terminal};

/// How often a child's memory is looked at. Its high-water mark only rises, but a child may let it
/// start anew between two of its own stages.
const LOOK: Duration = Duration::from_millis(20);

/// Where things are made: a folder to keep, or one that goes with this value.
pub enum Workplace {
    /// The person's.
    Kept(PathBuf),
    /// Removed when dropped.
    Scratch(TempDir),
}

impl Workplace {
    /// The folder.
    pub fn path(&self) -> &Path {
        match self {
            Workplace::Kept(path) => path,
            Workplace::Scratch(folder) => folder.path(),
        }
    }
}

/// Starts steps one at a time, and says where they are.
pub struct Runner {
    bar: indicatif::ProgressBar,
    draws: bool,
    interrupt: Interrupt,
    steps: usize,
    done: usize,
}

/// What a step printed, and the most memory it took.
pub struct Done {
    /// Its `--json`.
    pub json: Value,
    /// Bytes resident at most, where the system tells.
    pub peak: Option<usize>,
}

impl Runner {
    /// For `steps` steps.
    pub fn new(steps: usize) -> Result<Runner> {
        Ok(Runner {
            bar: terminal::relayed_progress(),
            draws: stderr().is_terminal(),
            interrupt: Interrupt::watch()?,
            steps,
            done: 0,
        })
    }

    /// Runs `scrimp ARGS --json`; `what` says on the bar what it is for. Ctrl-C ends it and this
    /// process, and removes a scratch folder first.
    pub fn run(&mut self, what: &str, args: &[String], at: &Workplace) -> Result<Done> {
        self.done += 1;
        let what = format!("{}/{} {what}", self.done, self.steps);
        self.bar.set_message(what.clone());
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command.args(args).arg("--json");
        if self.draws {
            command.arg("--progress-lines");
        }
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting this program again")?;
        let process = Arc::new(AtomicU32::new(child.id()));
        let _ending = self.interrupt.aborts(ending(Arc::clone(&process), at));
        let said = child.stderr.take();
        let over = AtomicBool::new(false);
        let (output, said, peak) = thread::scope(|scope| {
            let peak = scope.spawn(|| watch(process.load(Ordering::Relaxed), &over));
            let said = scope.spawn(|| said.map(|said| self.listen(&what, said)));
            let output = child.wait_with_output();
            over.store(true, Ordering::Relaxed);
            process.store(0, Ordering::Relaxed);
            (output, said.join(), peak.join())
        });
        let output = output.context("waiting for this program")?;
        if !output.status.success() {
            let said = said.ok().flatten().unwrap_or_default();
            bail!("{}", reason(&said, output.status));
        }
        let json = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("reading what {} printed", args[0]))?;
        Ok(Done {
            json,
            peak: peak.ok().flatten(),
        })
    }

    /// Draws what is progress, and collects what is not.
    fn listen(&self, what: &str, said: impl std::io::Read) -> Vec<String> {
        let mut collected = Vec::new();
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            match line.strip_prefix(terminal::PROGRESS) {
                Some(progress) => self.bar.set_message(format!("{what}  {progress}")),
                None => collected.push(line),
            }
        }
        collected
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// What Ctrl-C does meanwhile.
fn ending(process: Arc<AtomicU32>, at: &Workplace) -> impl FnOnce() + Send + 'static {
    let scratch = match at {
        Workplace::Kept(_) => None,
        Workplace::Scratch(folder) => Some(folder.path().to_owned()),
    };
    move || {
        let process = process.load(Ordering::Relaxed) as i32;
        if let Some(process) = rustix::process::Pid::from_raw(process) {
            // It may have ended by itself, on the same Ctrl-C.
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
        if let Some(folder) = scratch {
            let _ = std::fs::remove_dir_all(folder);
        }
        interrupt::exit()
    }
}

fn watch(process: u32, over: &AtomicBool) -> Option<usize> {
    let mut peak = None;
    while !over.load(Ordering::Relaxed) {
        peak = peak.max(machine::peak_rss_of(process));
        thread::sleep(LOOK);
    }
    peak
}

/// The error a child ended with, or how it ended.
fn reason(said: &[String], status: std::process::ExitStatus) -> String {
    let error = said.iter().rposition(|line| line.starts_with("error: "));
    match error {
        Some(at) => said[at..].join(" ")["error: ".len()..].to_owned(),
        None => match said.last() {
            Some(last) => format!("{status}: {last}"),
            None => status.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn the_error_is_the_reason_and_else_how_it_ended() {
        let killed = std::process::ExitStatus::from_raw(9);
        let said = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
        let text = reason(&said(&["note", "error: no room: 3", "is needed"]), killed);
        assert_eq!(text, "no room: 3 is needed");
        assert_eq!(reason(&[], killed), "signal: 9 (SIGKILL)");
        let text = reason(&said(&["thread panicked"]), killed);
        assert!(text.ends_with("thread panicked"), "{text}");
    }
}
