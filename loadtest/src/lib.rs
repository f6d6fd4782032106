//! Drives an inference server and says how fast it answered: open and closed loads, arms that take turns, ratios with
//! their intervals.

pub mod arms;
mod check;
pub mod deck;
pub mod drive;
pub mod images;
pub mod latencies;
pub mod objective;
pub mod pace;
pub mod plan;
pub mod record;
pub mod report;
pub mod responder;
mod seed;
pub mod server;
pub mod session;
pub mod settings;
pub mod stats;
pub mod target;
pub mod values;
pub mod wire;

// So that tests inside and outside of the crate share their helpers.
#[cfg(test)]
extern crate self as blockdrop_loadtest;
