//! Metrics, statistics, logs and traces.

mod identified;
mod kept;
pub mod logs;
pub mod metrics;
mod otlp;
mod policy;
pub mod request;
mod statistics;
mod workers;

pub use metrics::{Metrics, ModelMetrics};
pub use otlp::{Endpoint, Otlp, Tracer};
pub use request::RequestContext;
pub use statistics::{Statistics, Tally};
pub use workers::{Worker, Workers};
