//! The command line: parse, start logging, run one subcommand.

mod bench;
mod checked;
mod classify;
mod connections;
mod evaluate;
mod healthcheck;
mod inspect;
mod memory;
mod options;
mod progress;
mod room;
mod serve;
mod table;
mod traces;

use std::io::Write;
use std::process::ExitCode;

use blockdrop::policy::PolicyError;
use blockdrop::telemetry::logs::{self, LogFormat};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use checked::{Checked, Problems};

/// Serves image classifiers that run only the residual blocks an image needs (BlockDrop, CVPR 2018).
///
/// Every option can also be set in the environment: --http-addr is BLOCKDROP_HTTP_ADDR. Log levels are set by RUST_LOG.
#[derive(Debug, Parser)]
#[command(name = "blockdrop", version, max_term_width = 100, allow_negative_numbers = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[arg(
        long,
        global = true,
        env = "BLOCKDROP_LOG_FORMAT",
        default_value = "text",
        help = "How log lines are written to standard error: text or json"
    )]
    log_format: Checked<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over HTTP and gRPC.
    Serve(Box<serve::Options>),
    /// Classify image files.
    Classify(classify::Options),
    /// Show what a bundle is: its blocks, their shapes and FLOPs.
    Inspect(inspect::Options),
    /// Measure accuracy, blocks kept and FLOPs on labelled images.
    Evaluate(evaluate::Options),
    /// Time the full net against the kept blocks on this machine.
    Bench(bench::Options),
    /// Ask a running server's admin listener whether it is ready.
    Healthcheck(healthcheck::Options),
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

impl Failure {
    /// A choice of masks that does not fit the model, said of the option.
    pub(crate) fn misfit(error: &PolicyError) -> Self {
        let PolicyError { parameter, found, expected } = error;
        Self::Usage(Usage(vec![format!("--{}: found {found}, expected {expected}", parameter.replace('_', "-"))]))
    }
}

impl From<Usage> for Failure {
    fn from(usage: Usage) -> Self {
        Self::Usage(usage)
    }
}

/// Exit codes: 0 done, 1 failed, 2 wrong options.
pub(crate) fn main() -> ExitCode {
    let cli = match command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let mut problems = Problems::default();
    let format = problems.take("--log-format", "text or json", cli.log_format, |_| true);
    if let Err(problem) = logs::start(format.unwrap_or_default()) {
        return report(&[problem], 2);
    }
    let result = match cli.command {
        Command::Serve(options) => serve::run(*options, problems),
        Command::Classify(options) => classify::run(options, problems),
        Command::Inspect(options) => inspect::run(options, problems),
        Command::Evaluate(options) => evaluate::run(options, problems),
        Command::Bench(options) => bench::run(options, problems),
        Command::Healthcheck(options) => healthcheck::run(options, problems),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(Usage(problems))) => report(&problems, 2),
        Err(Failure::Failed(error)) => report(&[format!("{error:#}")], 1),
    }
}

/// The options, with those environment variables left out that are set to nothing, as compose files leave them.
fn command() -> clap::Command {
    let set = |arg: clap::Arg| {
        let empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if empty { arg.env(clap::builder::Resettable::Reset) } else { arg }
    };
    Cli::command().mut_args(set).mut_subcommands(|subcommand| subcommand.mut_args(set))
}

/// What went wrong, for people; a standard error that cannot be written to is no error of its own.
fn report(problems: &[String], code: u8) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    for line in problems.iter().flat_map(|problem| problem.lines()) {
        drop(writeln!(stderr, "error: {line}"));
    }
    ExitCode::from(code)
}
