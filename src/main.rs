//! The `scrimp` command line: arguments in, a command run, errors said.

mod args;
mod bundled;
mod commands;
mod interrupt;
mod launch;
mod machine;
mod opened;
mod page;
mod prompting;
mod terminal;

use std::alloc::System;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};

/// The system's allocator, with what it has handed out counted: the heap is the part of memory
/// that no plan reserves, and so the part that has to be looked at.
#[global_allocator]
static HEAP: cap::Cap<System> = cap::Cap::new(System, usize::MAX);

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.verbose);
    if cli.progress_lines {
        terminal::progress_as_lines();
    }
    let done = match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Serve(args) => commands::serve::serve(&args),
        Command::Bench(args) => commands::bench::bench(&args),
        Command::Eval(args) => commands::eval::eval(&args),
        Command::Plan(args) => commands::plan::plan(&args),
        Command::Profile(args) => commands::profile::profile(&args),
        Command::Quantize(args) => commands::quantize::quantize(&args),
        Command::Compare(args) => commands::compare::compare(&args),
        Command::Completions { shell } => {
            // Made first: the generator panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "scrimp", &mut script);
            terminal::print(&String::from_utf8_lossy(&script)).map_err(Into::into)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has left, as `head` does: there is nobody to tell.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::note(&format!("error: {}", terminal::causes(&error)));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error
        .chain()
        .find_map(|e| e.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn log_to_stderr(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SCRIMP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
