//! Objectives: `p99=20ms`, and conditions on which a run fails: `policy.p99>20ms`, `failed>0`, `speedup<1.2`.

use serde::{Deserialize, Serialize};

/// A latency that is wanted of a share of the requests: `p99=20ms`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// 0 to 1.
    pub quantile: f64,
    /// Milliseconds.
    pub most: f64,
}

/// A condition on which a run fails, as it was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    pub text: String,
}
