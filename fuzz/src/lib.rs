//! What the fuzz targets check: each takes any bytes and panics where blockdrop does not keep what it promises.
//!
//! `make fuzz` has libFuzzer make up bytes; `cargo test` runs the corpora of `corpus/` through the same functions.

mod bundle;
mod classify;
mod files;
mod images;
mod infer;
mod join;
mod onnx;
mod parameters;

/// What became of an input. A corpus has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Taken,
    Refused,
}

use Outcome::{Refused, Taken};

/// A target's name, and what it checks.
type Target = (&'static str, fn(&[u8]) -> Outcome);

/// Every target, by name.
pub const TARGETS: [Target; 13] = [
    ("bundle", bundle::manifest),
    ("bundle_files", bundle::files),
    ("classify", classify::classify),
    ("frequent", files::frequent),
    ("image", images::image),
    ("join", join::join),
    ("keys", files::keys),
    ("oip_binary", infer::binary),
    ("oip_grpc", infer::grpc),
    ("oip_json", infer::json),
    ("onnx", onnx::onnx),
    ("parameters", parameters::query),
    ("selection", parameters::selection),
];

/// Runs the target called `name` on `input`.
///
/// # Panics
/// There is no such target, or it finds something.
pub fn run(name: &str, input: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(other, _)| *other == name).expect("the name of a target");
    target(input);
}

/// To be called before the first input. libFuzzer's own hook ends the process at the first panic; but a panic of an image's
/// decoder is caught, and that image refused. One that is not caught ends the process all the same.
pub fn init() {
    drop(std::panic::take_hook());
}

/// A sentence for people that says something and is not endless.
fn check_message(message: &str) {
    assert!(!message.trim().is_empty(), "an error without a message");
    assert!(message.len() < 4096, "a message of {} bytes: {message}", message.len());
}
