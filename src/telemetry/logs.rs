//! Logs on standard error, as text or JSON; levels by `RUST_LOG`.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Starts logging. Levels are those of `RUST_LOG` (`info` where it is not set; `debug` logs each request and the time
/// spent in each of its stages).
///
/// # Errors
/// `RUST_LOG` cannot be understood.
pub fn start(format: LogFormat) -> Result<(), String> {
    let levels = std::env::var("RUST_LOG").unwrap_or_default();
    let levels = if levels.is_empty() { "info,ort=warn" } else { &levels };
    let filter = EnvFilter::builder().parse(levels).map_err(|error| {
        format!("RUST_LOG: found '{levels}', expected levels such as info or blockdrop=debug ({error})")
    })?;
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_span_events(FmtSpan::CLOSE);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
