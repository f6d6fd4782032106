//! What a run is: whom it drives, with what, how hard, for how long. Checked; [`crate::scenario`] makes it out of a file
//! and flags.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::objective::{Condition, Slo};
use crate::record::Fault;

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub title: String,
    /// The same seed sends the same requests in the same order, and the same gaps.
    pub seed: u64,
    /// At least one.
    pub arms: Vec<Arm>,
    /// The arm that the others are compared with.
    pub baseline: usize,
    pub request: Request,
    pub images: Images,
    pub load: Load,
    /// Before what is measured; for each arm.
    pub warm_up: Duration,
    /// Measured for each arm (a ramp: for each arm and rate).
    pub measure: Duration,
    /// The arms take turns of this length.
    pub slice: Duration,
    /// The latency that is wanted.
    pub slo: Option<Slo>,
    /// The share of requests that are broken on purpose, and how.
    pub faults: Faults,
    /// The run fails if one of them holds.
    pub fail_if: Vec<Condition>,
}

/// One of the things compared: a server, and what it is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Arm {
    pub name: String,
    /// `http://host:port`, of the HTTP listener or, for gRPC protocols, the gRPC one.
    pub url: String,
    pub model: Option<String>,
    pub version: Option<String>,
    /// Sent with each request, as `/v1/classify` calls them: `path`, `threshold`, `max_blocks`, `max_flops`. Values are
    /// strings, as in a query; protocols with typed parameters make numbers of what reads as one.
    pub parameters: Vec<(String, String)>,
}

/// How a request looks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    pub protocol: Protocol,
    /// Images in each request, 1 or more.
    pub images: usize,
    /// From when a request is due; then the harness gives up.
    pub timeout: Duration,
    /// HTTP: a new connection for each request.
    pub new_connections: bool,
    /// Sent as `Authorization: Bearer`. Never in a report.
    #[serde(skip)]
    pub api_key: Option<String>,
    /// Of the inference protocol: the input's name.
    pub input: String,
    pub datatype: Datatype,
    /// Of the inference protocol: the output that holds a value for each class (or the class itself, where it is of an
    /// integer type); the server's first where it is absent.
    pub output: Option<String>,
}

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// `POST /v1/classify`, the body an image's bytes.
    Classify,
    /// `POST /v1/classify`, a part for each image.
    ClassifyMultipart,
    /// Open Inference Protocol over HTTP, JSON both ways.
    OipJson,
    /// Open Inference Protocol over HTTP, tensors in binary both ways.
    OipBinary,
    /// `inference.GRPCInferenceService/ModelInfer`.
    GrpcOip,
    /// `inference.GRPCInferenceService/ModelStreamInfer`, a stream for each client.
    GrpcOipStream,
    /// `blockdrop.v1.Classifier/Classify`.
    Grpc,
    /// `blockdrop.v1.Classifier/ClassifyStream`, a stream for each client.
    GrpcStream,
}

/// What the input of the inference protocol holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Datatype {
    /// `BYTES [N]`: image files.
    Bytes,
    /// `FP32 [N,3,H,W]`: pixels from 0 to 1, less the mean, over the deviation, for red, green and blue; images of another
    /// size are resized. A height and width of 0 stand for what the first arm's model says of itself, mean and deviation
    /// included.
    Fp32 { height: u32, width: u32, mean: [f32; 3], std: [f32; 3] },
}

/// What is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Images {
    /// A folder of image files, a folder for each class, a CIFAR binary file, or a directory with `test*.bin` in it.
    pub from: PathBuf,
    /// At most so many; a seeded choice of what is there.
    pub limit: usize,
    /// Width and height to resize to, each in turn; as they are where it is empty.
    pub sizes: Vec<(u32, u32)>,
    /// What CIFAR's and resized images are written as.
    pub format: Format,
    /// The share of requests that carry a bad input: cut-off and damaged files, text, nothing, other types.
    pub bad: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    Png,
    Jpeg,
}

/// How hard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "mode")]
pub enum Load {
    /// `clients` that each wait for an answer, think, and ask again.
    Closed { clients: usize, think: Duration },
    /// `rate` requests a second, whatever becomes of them.
    Open { rate: f64, arrivals: Arrivals, connections: usize },
    /// Open load at rates that rise by `step` from `from` until an arm misses the objective or `to` is reached, and then
    /// between the last two, until they are within 5 %.
    Ramp { from: f64, to: f64, step: f64, arrivals: Arrivals, connections: usize },
    /// Closed load first, which tells the most that each arm can answer, then open load of `factor` times that.
    Overload { factor: f64, clients: usize, arrivals: Arrivals, connections: usize },
}

/// When requests of an open load are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// Gaps drawn from the exponential distribution.
    Poisson,
    /// Equal gaps.
    Constant,
}

/// Requests broken on purpose.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Faults {
    /// 0 to 1.
    pub share: f64,
    pub kinds: Vec<Fault>,
}

impl Protocol {
    pub const ALL: [Self; 8] = [
        Self::Classify,
        Self::ClassifyMultipart,
        Self::OipJson,
        Self::OipBinary,
        Self::GrpcOip,
        Self::GrpcOipStream,
        Self::Grpc,
        Self::GrpcStream,
    ];

    /// Spoken over gRPC, on HTTP/2.
    pub fn is_grpc(self) -> bool {
        matches!(self, Self::GrpcOip | Self::GrpcOipStream | Self::Grpc | Self::GrpcStream)
    }

    /// Whether a request may have several images.
    pub fn takes_several(self) -> bool {
        !matches!(self, Self::Classify | Self::Grpc | Self::GrpcStream)
    }

    /// The Open Inference Protocol, which servers other than blockdrop speak too.
    pub fn is_oip(self) -> bool {
        matches!(self, Self::OipJson | Self::OipBinary | Self::GrpcOip | Self::GrpcOipStream)
    }
}
