//! Metrics, statistics and logs.

mod kept;
pub mod logs;
pub mod metrics;
mod policy;
mod statistics;

pub use metrics::{Metrics, ModelMetrics};
pub use statistics::{Statistics, Tally};
