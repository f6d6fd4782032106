//! The command line: parse, run one subcommand, say how it went.

mod ceiling;
mod compare;
mod html;
mod progress;
mod respond;
mod run;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use blockdrop_loadtest::report::Report;
use clap::{Parser, Subcommand};

/// Drives an inference server and says how fast it answers: blockdrop, and any server of the Open Inference Protocol.
///
/// Exit codes: 0 done and all objectives held, 1 failed, 2 wrong options, 3 an objective (--fail-if) did not hold, 130
/// interrupted.
#[derive(Debug, Parser)]
#[command(name = "blockdrop-loadtest", version, max_term_width = 100, allow_negative_numbers = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a scenario, or what the flags say, and report.
    Run(Box<run::Options>),
    /// Compare two runs by their JSON reports.
    Compare(compare::Options),
    /// Draw the page of a JSON report.
    Html(html::Options),
    /// Measure the harness itself, against a responder that answers at once.
    Ceiling(ceiling::Options),
    /// Answer every protocol at once, and mean nothing by it.
    #[command(hide = true)]
    Respond(respond::Options),
}

/// What a subcommand ends with, if not well.
#[derive(Debug)]
enum Failure {
    /// All that is wrong with the options, a line each.
    Usage(Vec<String>),
    Failed(anyhow::Error),
    /// Objectives that did not hold; they have been told.
    Missed,
    /// Ended by a signal; what was found until then has been told.
    Interrupted,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

pub(crate) fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(options) => run::run(*options),
        Command::Compare(options) => compare::run(&options),
        Command::Html(options) => html::run(&options),
        Command::Ceiling(options) => ceiling::run(&options),
        Command::Respond(options) => respond::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(problems)) => tell(&problems, 2),
        Err(Failure::Failed(error)) => tell(&[format!("{error:#}")], 1),
        Err(Failure::Missed) => ExitCode::from(3),
        Err(Failure::Interrupted) => ExitCode::from(130),
    }
}

fn tell(problems: &[String], code: u8) -> ExitCode {
    for problem in problems {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(std::io::stderr(), "error: {problem}");
    }
    ExitCode::from(code)
}

/// Prints to standard output; a reader that went away (`| head`) is no error.
fn print(text: impl std::fmt::Display) -> std::io::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A report out of a file.
fn read(path: &std::path::Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Report::from_json(&text).with_context(|| format!("{} cannot be used", path.display()))
}

/// A runtime of so many threads.
fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    if threads == 1 {
        return tokio::runtime::Builder::new_current_thread().enable_all().build();
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}
