//! The server's errors as gRPC statuses.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::server::error::{Error, Kind};

impl Kind {
    /// The status over gRPC.
    pub fn grpc(self) -> Code {
        match self {
            Self::Unauthenticated => Code::Unauthenticated,
            Self::InvalidParameter
            | Self::InvalidBody
            | Self::InvalidBundle
            | Self::EmptyBody
            | Self::InvalidImage
            | Self::UnsupportedEncoding
            | Self::UnsupportedImageType
            | Self::ImageTooLarge
            | Self::TooManyImages => Code::InvalidArgument,
            Self::Forbidden => Code::PermissionDenied,
            Self::BodyTooLarge => Code::ResourceExhausted,
            Self::UnknownModel | Self::NotFound => Code::NotFound,
            Self::MethodNotAllowed => Code::Unimplemented,
            Self::Overloaded | Self::ShuttingDown | Self::Starting => Code::Unavailable,
            Self::BodyTimeout | Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Internal => Code::Internal,
        }
    }
}

/// Where the code is that HTTP has too: in a status's metadata, and among the parameters of a stream's message.
pub(super) const CODE: &str = "blockdrop-code";

/// The sentence as message, and the code in the metadata.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut status = Self::new(error.kind.grpc(), error.message);
        status.metadata_mut().insert(CODE, MetadataValue::from_static(error.kind.code()));
        if let Some(seconds) = error.retry_after {
            let milliseconds = MetadataValue::from(u64::from(seconds) * 1000);
            status.metadata_mut().insert("grpc-retry-pushback-ms", milliseconds);
        }
        status
    }
}
