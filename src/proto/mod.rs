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

/// A code's name, as the protocol writes it.
pub fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
