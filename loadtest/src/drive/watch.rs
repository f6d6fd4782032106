//! Who looks on while a run goes on.

use std::time::Duration;

use crate::record::Counts;

/// Is told about ten times a second how a run goes, on the thread that drives: it should be quick.
pub trait Watch: Send + Sync {
    fn progress(&self, progress: &Progress<'_>);
}

/// Nobody looks on.
impl Watch for () {
    fn progress(&self, _: &Progress<'_>) {}
}

/// How a run goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    pub phase: Phase,
    /// The arm under load.
    pub arm: usize,
    pub name: &'a str,
    /// Time under load so far, as planned: what it takes to await what is under way after a turn is not in it.
    pub elapsed: Duration,
    /// Time under load of the whole run; of a ramp the most that it can still come to.
    pub total: Duration,
    /// The arm's in this phase (ramp: at this rate); `sent` holds those that are under way too.
    pub counts: Counts,
    /// Requests answered in a second, of the last second or so.
    pub throughput: f64,
    /// Milliseconds, of what was due in this second and the one before and has been answered; 0 of none.
    pub p99: f64,
}

/// What a run is at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Phase {
    WarmUp,
    /// Closed load, or open load at the plan's rate.
    Measure,
    /// A ramp, at so many requests a second.
    Rate(f64),
    /// The closed load before an overload.
    Peak,
    /// So many requests a second, more than the arm can answer.
    Overload(f64),
}
