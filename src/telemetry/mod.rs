//! Metrics, statistics and logs.

mod kept;
pub mod logs;
pub mod metrics;
mod policy;
mod statistics;
mod workers;

pub use metrics::{Metrics, ModelMetrics};
pub use statistics::{Statistics, Tally};
pub use workers::{Worker, Workers};
