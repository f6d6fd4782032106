//! Drives an inference server and says how fast it answered: open and closed loads, arms that take turns, ratios with
//! their intervals.

pub mod images;
pub mod latencies;
pub mod objective;
pub mod plan;
pub mod record;
pub mod report;
pub mod responder;
pub mod target;
pub mod wire;

// So that tests inside and outside of the crate share their helpers.
#[cfg(test)]
extern crate self as blockdrop_loadtest;
