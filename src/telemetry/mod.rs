//! Metrics, statistics and logs.

mod kept;
pub mod logs;
pub mod metrics;
mod statistics;

pub use metrics::{Metrics, ModelMetrics};
pub use statistics::{Statistics, Tally};
