//! Drives an inference server and says how fast it answered: open and closed loads, arms that take turns, ratios with
//! their intervals.

pub mod deck;
pub mod drive;
pub mod latencies;
pub mod objective;
pub mod pace;
pub mod plan;
pub mod record;
pub mod report;
mod seed;
pub mod stats;
pub mod target;
