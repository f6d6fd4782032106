//! The gRPC contracts of `proto/`: messages, services, and of our own service a client, generated.

pub mod codec;

/// The Open Inference Protocol, version 2.
#[allow(unreachable_pub, clippy::unwrap_used, reason = "generated")]
pub mod inference {
    tonic::include_proto!("inference");
}

/// Our own typed service.
#[allow(unreachable_pub, clippy::unwrap_used, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("blockdrop.v1");
}

/// The contracts as reflection tells them.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("services");
