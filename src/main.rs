//! The `blockdrop` command.
#![allow(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // ONNX Runtime would keep an identifier and a database for telemetry in the home directory, from when it is loaded.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
    cli::main()
}
