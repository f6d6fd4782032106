//! The server: two listeners, one service behind them.
//!
//! The public listener answers applications; the admin one shows metrics and health to operators.

mod admin;
mod again;
mod arrived;
mod bodies;
mod classify;
mod connection;
mod decoders;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
pub mod http;
mod keys;
mod oip;
mod parameters;
mod pulse;
mod readiness;
mod run;

pub use classify::{Classified, Image, ImageResult, Limits, Request, Service, Times, Timing};
pub use error::{Error, Kind};
pub use keys::{KEYS_VARIABLE, Keys, KeysError};
pub use readiness::Readiness;
pub use run::{ServeError, Settings, serve};
