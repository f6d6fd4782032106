//! The command line: parse, start logging, run one subcommand.

mod checked;
mod classify;
mod evaluate;
mod inspect;
mod options;
mod serve;
mod table;

use std::process::ExitCode;

use blockdrop::telemetry::logs::{self, LogFormat};
use clap::{Parser, Subcommand};

/// Serves image classifiers that run only the residual blocks an image needs (BlockDrop, CVPR 2018).
///
/// Every option can also be set in the environment: --http-addr is BLOCKDROP_HTTP_ADDR. Log levels are set by RUST_LOG.
#[derive(Debug, Parser)]
#[command(name = "blockdrop", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// How log lines are written to standard error.
    #[arg(long, global = true, env = "BLOCKDROP_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over HTTP.
    Serve(serve::Options),
    /// Classify image files.
    Classify(classify::Options),
    /// Show what a bundle is: its blocks, their shapes and FLOPs.
    Inspect(inspect::Options),
    /// Measure accuracy, blocks kept and FLOPs on labelled images.
    Evaluate(evaluate::Options),
}

/// Everything wrong with the options, one line each.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) Vec<String>);

/// What a subcommand ends with.
#[derive(Debug)]
pub(crate) enum Failure {
    Usage(Usage),
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Usage> for Failure {
    fn from(usage: Usage) -> Self {
        Self::Usage(usage)
    }
}

/// Exit codes: 0 done, 1 failed, 2 wrong options.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(problem) = logs::start(cli.log_format) {
        return report(&[problem], 2);
    }
    let result = match cli.command {
        Command::Serve(options) => serve::run(options),
        Command::Classify(options) => classify::run(options),
        Command::Inspect(options) => inspect::run(options),
        Command::Evaluate(options) => evaluate::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(Usage(problems))) => report(&problems, 2),
        Err(Failure::Failed(error)) => report(&[format!("{error:#}")], 1),
    }
}

#[expect(clippy::print_stderr, reason = "what went wrong goes to people, not to the log")]
fn report(problems: &[String], code: u8) -> ExitCode {
    problems.iter().flat_map(|problem| problem.lines()).for_each(|line| eprintln!("error: {line}"));
    ExitCode::from(code)
}
