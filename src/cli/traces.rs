//! Options of tracing.

use blockdrop::telemetry::{Endpoint, Otlp};
use clap::Args;

use super::checked::{Checked, Problems};

#[derive(Debug, Args)]
pub(crate) struct Traces {
    /// Collector that traces are exported to, by OTLP over gRPC without TLS, such as http://localhost:4317. OTEL_SERVICE_NAME,
    /// OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_* and OTEL_EXPORTER_OTLP_{HEADERS,TIMEOUT,COMPRESSION} are honoured; no OTEL_*
    /// variable turns the export on [default: no export].
    #[arg(long, env = "BLOCKDROP_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,

    /// Share of the requests that are exported, from 0 to 1, of those that come without a traceparent. One that comes with
    /// it is exported if its caller's span is sampled.
    #[arg(long, env = "BLOCKDROP_TRACE_SAMPLE", default_value = "0.01")]
    trace_sample: Checked<f64>,
}

impl Traces {
    /// Where traces go, if they go anywhere.
    pub(crate) fn check(self, problems: &mut Problems) -> Option<Otlp> {
        let sample = problems
            .take("--trace-sample", "a share from 0 to 1", self.trace_sample, |share| (0.0..=1.0).contains(share));
        let endpoint = self.otlp_endpoint.map(|url| Endpoint::read(&url)).transpose();
        let endpoint = endpoint.map_err(|wrong| problems.note(&format!("--otlp-endpoint: {wrong}")));
        Some(Otlp { endpoint: endpoint.ok()??, sample: sample? })
    }
}
