//! Metrics, statistics and logs.

pub mod logs;
pub mod metrics;
mod statistics;

pub use metrics::{Metrics, ModelMetrics};
pub use statistics::{Statistics, Tally};
