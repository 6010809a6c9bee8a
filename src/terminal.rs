//! How things look on a terminal: dimmed text, aligned tables, progress with rate and time left.
//!
//! Results go to stdout; everything else (progress, reports, bills) goes to stderr, so that
//! stdout can be piped.

use std::borrow::Cow;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// Writes an answer to stdout as it comes, thinking dimmed where the terminal can.
pub struct AnswerPrinter {
    terminal: bool,
    colours: bool,
    thinking: bool,
    ends_with_newline: bool,
}

impl AnswerPrinter {
    /// A printer for this process's stdout; `NO_COLOR` is respected.
    pub fn new() -> AnswerPrinter {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let terminal = stdout().is_terminal();
        AnswerPrinter {
            terminal,
            colours: terminal && !unwanted,
            thinking: false,
            ends_with_newline: true,
        }
    }

    /// Prints a piece of the chain of thought.
    pub fn reasoning(&mut self, text: &str) -> std::io::Result<()> {
        if !text.is_empty() && !self.thinking {
            self.thinking = true;
            self.put(if self.colours { "\x1b[2m" } else { "<think>\n" })?;
        }
        self.text(text)
    }

    /// Prints a piece of the answer.
    pub fn answer(&mut self, text: &str) -> std::io::Result<()> {
        if !text.is_empty() {
            self.close_thinking()?;
        }
        self.text(text)
    }

    /// Ends the line and undoes any style; the printer can be used for another answer then.
    pub fn finish(&mut self) -> std::io::Result<()> {
        self.close_thinking()?;
        if !self.ends_with_newline {
            self.put("\n")?;
            self.ends_with_newline = true;
        }
        Ok(())
    }

    fn close_thinking(&mut self) -> std::io::Result<()> {
        if !self.thinking {
            return Ok(());
        }
        self.thinking = false;
        let line = if self.ends_with_newline { "" } else { "\n" };
        let end = if self.colours {
            "\x1b[0m\n"
        } else {
            "</think>\n\n"
        };
        self.put(line)?;
        self.put(end)
    }

    fn text(&mut self, text: &str) -> std::io::Result<()> {
        if !text.is_empty() {
            self.ends_with_newline = text.ends_with('\n');
        }
        match self.terminal {
            true => self.put(&printable(text)),
            false => self.put(text),
        }
    }

    fn put(&mut self, text: &str) -> std::io::Result<()> {
        print(text)
    }
}

/// What a model may write on a terminal: text, but no commands to it.
fn printable(text: &str) -> Cow<'_, str> {
    let commands = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(commands) {
        true => text.replace(commands, "\u{fffd}").into(),
        false => text.into(),
    }
}

/// A progress bar over bytes with rate and remaining time; hidden when stderr is no terminal.
pub fn byte_progress(what: &'static str, total: u64) -> ProgressBar {
    let template =
        "{msg:>12} [{bar:30}] {bytes:>10} of {total_bytes} at {bytes_per_sec}, {eta} left";
    bar(what, total, template)
}

/// A progress bar over things with rate and remaining time; hidden when stderr is no terminal.
pub fn count_progress(what: &'static str, total: u64) -> ProgressBar {
    bar(
        what,
        total,
        "{msg:>12} [{bar:30}] {pos:>6} of {len} at {per_sec}, {eta} left",
    )
}

/// A progress bar over weights; its message says where in the model they are.
pub fn weights_progress() -> ProgressBar {
    bar(
        "",
        0,
        "[{bar:24}] {percent:>3} % at {per_sec} weights, {eta} left; {msg}",
    )
}

/// Whether progress is written for the program that started this one.
static AS_LINES: AtomicBool = AtomicBool::new(false);

/// What a line of progress begins with.
pub const PROGRESS: char = '\r';

/// From now on progress is not drawn but written to stderr, a line each time, behind
/// [`PROGRESS`]: whoever started this process draws it.
pub fn progress_as_lines() {
    AS_LINES.store(true, Ordering::Relaxed);
}

/// A line that says how far another process is; hidden when stderr is no terminal.
pub fn relayed_progress() -> ProgressBar {
    bar("", 0, "{wide_msg}")
}

/// A terminal of one line, which is written anew and never overwritten.
#[derive(Debug, Default)]
struct ProgressLines(Mutex<String>);

impl ProgressLines {
    fn line(&self) -> std::sync::MutexGuard<'_, String> {
        let line = self.0.lock();
        line.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl TermLike for ProgressLines {
    fn width(&self) -> u16 {
        100
    }

    fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> std::io::Result<()> {
        self.write_str(text)
    }

    fn write_str(&self, text: &str) -> std::io::Result<()> {
        self.line().push_str(text);
        Ok(())
    }

    fn clear_line(&self) -> std::io::Result<()> {
        self.line().clear();
        Ok(())
    }

    fn flush(&self) -> std::io::Result<()> {
        let line = std::mem::take(&mut *self.line());
        match line.trim() {
            "" => Ok(()),
            line => writeln!(stderr(), "{PROGRESS}{line}"),
        }
    }
}

fn bar(what: &'static str, total: u64, template: &str) -> ProgressBar {
    let as_lines = AS_LINES.load(Ordering::Relaxed);
    let (target, template) = match as_lines {
        true => {
            let lines = Box::new(ProgressLines::default());
            // Whoever draws the line has something to say before it.
            let template = template
                .replace("{bar:30}", "{bar:8}")
                .replace("{msg:>12} ", "{msg} ");
            (ProgressDrawTarget::term_like_with_hz(lines, 4), template)
        }
        false => (ProgressDrawTarget::stderr(), template.to_owned()),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what);
    bar
}

/// A table of text: the first column flush left, the others flush right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(c, (cell, &w))| match c {
                0 => format!("{cell:<w$}"),
                _ => format!("{cell:>w$}"),
            })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// `count / time`, or 0 when no time passed.
pub fn rate(count: usize, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

/// An error and its causes on one line. Many errors end with their cause's own words, which are
/// then not said again.
pub fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes a result to stdout, as `print!` does, but a closed pipe or a full disk is an error.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes to stderr; a closed stderr is nobody's loss.
pub fn note(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_whatever_their_cells() {
        let rows = [vec!["weights", "1 KiB"], vec!["kv", "300 KiB"]];
        let rows = rows.map(|r| r.into_iter().map(String::from).collect());
        assert_eq!(table(&rows), "weights    1 KiB\nkv       300 KiB\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn a_model_gives_a_terminal_no_commands() {
        assert_eq!(printable("two\n\tlines é"), "two\n\tlines é");
        assert_eq!(
            printable("\x1b]0;title\x07\u{9b}2J"),
            "\u{fffd}]0;title\u{fffd}\u{fffd}2J"
        );
    }

    #[test]
    fn a_cause_is_said_once() {
        let inner = std::io::Error::other("disk on fire");
        let error = anyhow::Error::new(inner).context("reading x: disk on fire");
        assert_eq!(causes(&error), "reading x: disk on fire");
        let error = error.context("opening the model");
        assert_eq!(causes(&error), "opening the model: reading x: disk on fire");
    }
}
