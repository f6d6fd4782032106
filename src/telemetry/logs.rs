//! Logs on standard error, as text or JSON; levels by `RUST_LOG`.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::str::FromStr;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{FmtSpan, JsonFields, format};
use tracing_subscriber::util::SubscriberInitExt;

use super::identified::Identified;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Text, Self::Json]
            .into_iter()
            .find(|format| format.to_string() == text)
            .ok_or_else(|| format!("unknown log format '{text}', expected text or json"))
    }
}

/// Starts logging. Levels are those of `RUST_LOG` (`info` where it is not set; `debug` logs each request and the time
/// spent in each of its stages). A line about a request has its id, and the id of its trace.
///
/// # Errors
/// `RUST_LOG` cannot be understood.
pub fn start(how: LogFormat) -> Result<(), String> {
    let levels = std::env::var("RUST_LOG").unwrap_or_default();
    // ONNX Runtime tells of every graph: its own level has to be named.
    let all = format!("ort=warn,{}", if levels.is_empty() { "info" } else { &levels });
    let filter = EnvFilter::builder().parse(all).map_err(|error| {
        format!("RUST_LOG: found '{levels}', expected levels such as info or blockdrop=debug ({error})")
    })?;
    // A panic is a line of the log like any other; what follows from it is decided where it is caught.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("");
        tracing::error!(place, message, "panic");
    }));
    subscriber(how, filter, || Stderr).init();
    Ok(())
}

/// What writes the lines that pass the `filter` to `out`.
pub(crate) fn subscriber<W>(how: LogFormat, filter: EnvFilter, out: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(out).with_span_events(FmtSpan::CLOSE);
    match how {
        LogFormat::Text => {
            let text = format().with_ansi(std::io::stderr().is_terminal());
            Box::new(lines.event_format(Identified { format: how, lines: text }).finish())
        }
        LogFormat::Json => {
            let json = format().json().flatten_event(true);
            let lines = lines.event_format(Identified { format: how, lines: json });
            Box::new(lines.fmt_fields(JsonFields::new()).finish())
        }
    }
}

/// Standard error, with what cannot be written lost: a full disk or a reader that left is no reason to stop serving.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        drop(std::io::stderr().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
