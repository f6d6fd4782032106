//! Lines of the log that say whose request they are of.

use std::fmt;

use serde_json::Value;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::logs::LogFormat;
use super::request::{RequestContext, current};

/// Writes lines as `lines` does, each with `request_id` and `trace_id` of the request that is worked on; of a batch of
/// several requests with lists of theirs, `request_ids` and `trace_ids`.
pub(super) struct Identified<F> {
    pub(super) format: LogFormat,
    pub(super) lines: F,
}

impl<S, N, F> FormatEvent<S, N> for Identified<F>
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let ids = current(|requests| match requests {
            [] => None,
            [one] => Some([("request_id", Value::from(one.id())), ("trace_id", Value::from(one.trace_id()))]),
            several => {
                let each = |of: fn(&RequestContext) -> Value| several.iter().map(|one| of(one)).collect::<Vec<_>>();
                let (ids, traces) = (each(|one| one.id().into()), each(|one| one.trace_id().into()));
                Some([("request_ids", ids.into()), ("trace_ids", traces.into())])
            }
        });
        let Some(ids) = ids else { return self.lines.format_event(context, out, event) };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end_matches('\n');
        match (self.format, line.strip_suffix('}')) {
            (LogFormat::Json, Some(object)) => {
                out.write_str(object)?;
                ids.iter().try_for_each(|(name, value)| write!(out, ",\"{name}\":{value}"))?;
                out.write_str("}\n")
            }
            _ => {
                out.write_str(line)?;
                ids.iter().try_for_each(|(name, value)| match value {
                    Value::String(text) => write!(out, " {name}={text}"),
                    list => write!(out, " {name}={list}"),
                })?;
                out.write_char('\n')
            }
        }
    }
}
