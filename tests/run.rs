//! The command line when it is used wrongly, or its surroundings fail: a clear error each time.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Output, Stdio};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/deepseek_v3");

fn scrimp(command: &str, args: &[&str]) -> Command {
    let mut scrimp = Command::new(env!("CARGO_BIN_EXE_scrimp"));
    scrimp
        .args([command, "--model", MODEL, "--memory", "1GiB"])
        .args(["--threads", "2"])
        .args(args)
        .stdin(Stdio::null());
    scrimp
}

/// What it said, having failed without a panic.
fn refusal(output: Output) -> String {
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn sizes_of_nothing_are_refused() {
    for (flags, expected) in [
        (["--max-model-len", "0"], "max-model-len is 0: it must be"),
        (["--max-blocks-per-seq", "0"], "is 0: it must be"),
        (["--num-blocks", "0"], "num-blocks is 0: it must be"),
        (["--max-tokens", "0"], "max_tokens is 0, but must be"),
        (["--stop", ""], "stop is a text of 0 bytes, but must be"),
    ] {
        let mut run = scrimp("run", &flags);
        if flags[0] != "--max-tokens" {
            run.args(["--max-tokens", "4"]);
        }
        let said = refusal(run.arg("hi").output().unwrap());
        assert!(said.contains(expected), "{flags:?}: {said}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    for (command, args) in [
        ("run", &["--json", "-n", "2", "hi"][..]),
        ("bench", &["-p", "4", "-n", "2", "-r", "1"]),
        ("bench", &["-p", "4", "-n", "2", "-r", "1", "--json"]),
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = scrimp(command, args).stdout(full).output().unwrap();
        let said = refusal(output);
        assert!(said.contains("error: No space left"), "{args:?}: {said}");
    }
}

#[test]
fn an_endless_prompt_is_refused() {
    let mut run = scrimp("run", &["-n", "2"]);
    let mut child = run
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // It stops reading: writing fails then.
    while input.write_all(&[b'x'; 1 << 16]).is_ok() {}
    let said = refusal(child.wait_with_output().unwrap());
    assert!(said.contains("more than 16.00 MiB"), "{said}");
}
