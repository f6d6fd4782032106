//! The server: two listeners, one service behind them.
//!
//! The public listener answers applications; the admin one shows metrics and health to operators.

mod admin;
mod classify;
mod error;
pub mod http;
mod readiness;
mod run;

pub use classify::{ImageResult, Limits, Request, Service, Timing};
pub use error::{Error, Kind};
pub use readiness::Readiness;
pub use run::{ServeError, Settings, serve};
