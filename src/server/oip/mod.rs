//! The Open Inference Protocol, version 2, without a transport: what REST and gRPC share.
//!
//! A model has one input, `image`, and six outputs ([`Output`]). Facts of an image are output tensors; a request of one
//! image has them in its answer's parameters too.

mod infer;
mod input;
mod metadata;
mod output;

pub(super) use infer::{Infer, Inferred, Value};
pub(super) use input::{Contents, Expected, INPUT};
pub(super) use metadata::{
    Duration as StatisticDuration, ModelConfig, ModelMetadata, ModelStatistics, ServerMetadata, TensorMetadata,
    statistics,
};
pub(super) use output::{Data, Tensor, Wanted};
