//! What a run is made of: flags, and a scenario's file with the same names, read and laid over each other. [`crate::check`]
//! makes a plan of them.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::arms::Words;
use crate::objective::{Condition, Slo};
use crate::plan::{Arrivals, Format, Protocol};
use crate::record::Fault;
use crate::values::{Pixels, Share, Size, Span, Three};

/// Declares the settings once: as flags, as keys of a scenario's file (`--warm-up 2s` is `warm-up = "2s"`), and how flags
/// go before the file.
macro_rules! settings {
    ($($(#[$about:meta])* $name:ident: $kind:ident<$value:ty>,)*) => {
        /// All that can be said of a run. What is not said is [`None`], or empty.
        #[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Settings {
            $($(#[$about])* pub $name: $kind<$value>,)*
        }

        impl Settings {
            /// These settings, and where they say nothing, those of `other`.
            #[must_use]
            pub fn or(self, other: Self) -> Self {
                Self { $($name: Said::or(self.$name, other.$name),)* }
            }
        }
    };
}

trait Said {
    fn or(self, other: Self) -> Self;
}

impl<T> Said for Option<T> {
    fn or(self, other: Self) -> Self {
        Self::or(self, other)
    }
}

impl<T> Said for Vec<T> {
    fn or(self, other: Self) -> Self {
        if self.is_empty() { other } else { self }
    }
}

settings! {
    /// Name of the run, for its report.
    #[arg(long)]
    title: Option<String>,

    /// Of everything that is drawn: the same seed sends the same requests in the same order [default: 1].
    #[arg(long)]
    seed: Option<u64>,

    /// HTTP listener to drive, http://host:port [default: http://localhost:8080].
    #[arg(long, help_heading = "Server")]
    url: Option<String>,

    /// gRPC listener to drive, http://host:port [default: http://localhost:9000].
    #[arg(long, help_heading = "Server")]
    grpc_url: Option<String>,

    /// Start a server for the run, on ports of its own choice: the blockdrop beside this binary, or --server-binary.
    #[arg(long, help_heading = "Server", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    start: Option<bool>,

    /// With --start: more arguments of `blockdrop serve`, separated by spaces, such as "--workers 1".
    #[arg(long, help_heading = "Server", allow_hyphen_values = true)]
    server_args: Option<String>,

    /// With --start: the server to start.
    #[arg(long, help_heading = "Server")]
    server_binary: Option<PathBuf>,

    /// With --start: the models to serve [default: models].
    #[arg(long, help_heading = "Server")]
    models: Option<PathBuf>,

    /// Model to ask [default: the server's only one, or its default].
    #[arg(long, help_heading = "Server")]
    model: Option<String>,

    /// Version of the model [default: the server's newest].
    #[arg(long, help_heading = "Server")]
    model_version: Option<String>,

    /// File with an API key, which is sent as Authorization: Bearer.
    #[arg(long, help_heading = "Server")]
    api_key_file: Option<PathBuf>,

    /// What is spoken: classify, classify-multipart, oip-json, oip-binary, grpc-oip, grpc-oip-stream, grpc, grpc-stream
    /// [default: classify].
    #[arg(long, help_heading = "Request")]
    protocol: Option<Protocol>,

    /// Images in each request [default: 1].
    #[arg(long, help_heading = "Request")]
    batch: Option<usize>,

    /// Time from when a request is due; then it is given up [default: 5s].
    #[arg(long, help_heading = "Request")]
    timeout: Option<Span>,

    /// HTTP: open a connection for each request.
    #[arg(long, help_heading = "Request", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    new_connections: Option<bool>,

    /// Inference protocol: name of the input [default: image].
    #[arg(long, help_heading = "Request")]
    input: Option<String>,

    /// Inference protocol: what the input holds, BYTES (image files) or FP32 (pixels, [N,3,H,W]) [default: BYTES].
    #[arg(long, help_heading = "Request")]
    datatype: Option<Pixels>,

    /// FP32: width and height that the model wants, such as 32x32, with --mean and --std beside it [default: what blockdrop's
    /// model says over HTTP].
    #[arg(long, help_heading = "Request")]
    input_size: Option<Size>,

    /// FP32: what is taken from each channel's values, which go from 0 to 1 [default: as of
    /// --input-size].
    #[arg(long, help_heading = "Request")]
    mean: Option<Three>,

    /// FP32: what they are then divided by [default: as of --input-size].
    #[arg(long, help_heading = "Request")]
    std: Option<Three>,

    /// Inference protocol: the output with a value for each class, or with the class [default: blockdrop's
    /// probabilities, or the server's first output].
    #[arg(long, help_heading = "Request")]
    output: Option<String>,

    /// Images to send: a folder of files, a folder for each class, a CIFAR binary file or a directory with test*.bin in
    /// it [default: samples].
    #[arg(long, help_heading = "Images")]
    images: Option<PathBuf>,

    /// Images to take of those, drawn at random, at most [default: 512].
    #[arg(long, help_heading = "Images")]
    limit: Option<usize>,

    /// Sizes to resize the images to, each in turn, such as 32x32,640x480 [default: as they are].
    #[arg(long, help_heading = "Images", value_delimiter = ',')]
    sizes: Vec<Size>,

    /// What resized images and CIFAR's are sent as: png or jpeg [default: png].
    #[arg(long, help_heading = "Images")]
    format: Option<Format>,

    /// Share of requests that carry a bad input, which the server has to refuse, 0 to 1 or in % [default: 0].
    #[arg(long, help_heading = "Images")]
    bad: Option<Share>,

    /// How hard: closed (--clients that wait for their answers), open (--rate requests a second, come what may), ramp
    /// (the highest rate that meets --slo) or overload (--factor times the most that is answered) [default: closed].
    #[arg(long, help_heading = "Load")]
    load: Option<Kind>,

    /// closed, overload: clients [default: 4].
    #[arg(long, help_heading = "Load")]
    clients: Option<usize>,

    /// closed: pause of a client between an answer and its next request [default: 0s].
    #[arg(long, help_heading = "Load")]
    think: Option<Span>,

    /// open: requests a second.
    #[arg(long, help_heading = "Load")]
    rate: Option<f64>,

    /// open, ramp, overload: poisson or constant gaps between requests [default: poisson].
    #[arg(long, help_heading = "Load")]
    arrivals: Option<Arrivals>,

    /// open, ramp, overload: requests under way, at most; beyond it they wait in the harness, and the wait counts
    /// [default: 256].
    #[arg(long, help_heading = "Load")]
    connections: Option<usize>,

    /// ramp: the first rate [default: 50].
    #[arg(long, help_heading = "Load")]
    from: Option<f64>,

    /// ramp: the last rate [default: 100000].
    #[arg(long, help_heading = "Load")]
    to: Option<f64>,

    /// ramp: each rate is so many times the one before [default: 1.3].
    #[arg(long, help_heading = "Load")]
    step: Option<f64>,

    /// overload: so many times the most that is answered [default: 10].
    #[arg(long, help_heading = "Load")]
    factor: Option<f64>,

    /// Latency that is wanted, such as p99=20ms; what comes later is answered, but not in time.
    #[arg(long, help_heading = "Load")]
    slo: Option<Slo>,

    /// Time before what is measured, for each arm [default: 2s].
    #[arg(long, help_heading = "Time")]
    warm_up: Option<Span>,

    /// Time that is measured, for each arm (ramp: for each arm and rate) [default: 20s].
    #[arg(long, help_heading = "Time")]
    measure: Option<Span>,

    /// Arms take turns of this length [default: a twentieth of --measure, within 100ms and 2s].
    #[arg(long, help_heading = "Time")]
    slice: Option<Span>,

    /// What is compared, several times: words NAME=VALUE separated by spaces. name, url, grpc-url, model, version say
    /// whom; path, threshold, max_blocks, max_flops are sent with each request; a word alone is a path, as in "first_k:7"
    /// [default: one arm that asks for nothing].
    #[arg(long = "arm", help_heading = "Arms")]
    arm: Vec<Words>,

    /// Name of the arm that the others are compared with [default: the one named full, or the last].
    #[arg(long, help_heading = "Arms")]
    baseline: Option<String>,

    /// Share of requests that are broken on purpose, 0 to 1 or in % [default: 0].
    #[arg(long, help_heading = "Faults")]
    faults: Option<Share>,

    /// How they are broken: disconnect, junk, slow-body, giant-headers, half-close [default: all of them].
    #[arg(long, help_heading = "Faults", value_delimiter = ',')]
    fault_kinds: Vec<Fault>,

    /// Condition on which the run fails (exit code 3), several times: "failed>0", "policy.p99>20ms", "speedup.low<1.2".
    #[arg(long, help_heading = "Report")]
    fail_if: Vec<Condition>,
}

/// [`Load`] without its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Closed,
    Open,
    Ramp,
    Overload,
}

/// A scenario's file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("{}: cannot be read: {reason}", path.display())]
    Read { path: PathBuf, reason: std::io::Error },
    #[error("{}: {reason}", path.display())]
    Wrong { path: PathBuf, reason: Box<toml::de::Error> },
}

impl Settings {
    /// A scenario's file.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, or has a key or a value that is not known.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let text =
            std::fs::read_to_string(path).map_err(|reason| ScenarioError::Read { path: path.to_path_buf(), reason })?;
        toml::from_str(&text)
            .map_err(|reason| ScenarioError::Wrong { path: path.to_path_buf(), reason: Box::new(reason) })
    }
}
