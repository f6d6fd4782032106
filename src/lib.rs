//! blockdrop runs only the residual blocks that an image needs.
//!
//! A small policy network looks at an image once and says which blocks of a ResNet to keep; only those run
//! (Wu et al., "BlockDrop: Dynamic Inference Paths in Residual Networks", CVPR 2018).

pub mod answer;
pub mod bundle;
pub mod dataset;
pub mod engine;
pub mod image;
pub mod policy;
pub mod proto;
pub mod registry;
pub mod scheduler;
pub mod server;
pub mod telemetry;
mod text;
