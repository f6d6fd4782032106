//! The one error of the server's border, and what it is in each protocol.

use std::time::Duration;

use axum::http::StatusCode;

use crate::image::ImageError;
use crate::policy::PolicyError;
use crate::registry::{ChangeError, Unknown};
use crate::scheduler::{Refused, WorkError};
use crate::text::bounded;

/// What kind of error it is; fixes the status and the machine-readable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Unauthenticated,
    InvalidParameter,
    InvalidBody,
    EmptyBody,
    InvalidImage,
    UnsupportedEncoding,
    ImageTooLarge,
    UnsupportedImageType,
    BodyTooLarge,
    TooManyImages,
    BodyTimeout,
    UnknownModel,
    NotFound,
    MethodNotAllowed,
    InvalidBundle,
    Forbidden,
    Starting,
    Overloaded,
    ShuttingDown,
    DeadlineExceeded,
    Internal,
}

impl Kind {
    /// The status over HTTP.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::InvalidParameter | Self::InvalidBody | Self::EmptyBody | Self::InvalidImage | Self::InvalidBundle => {
                StatusCode::BAD_REQUEST
            }
            Self::ImageTooLarge | Self::BodyTooLarge | Self::TooManyImages => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedEncoding | Self::UnsupportedImageType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownModel | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Starting | Self::Overloaded | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The `code` of an error answer: stable, for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::InvalidParameter => "invalid_parameter",
            Self::InvalidBody => "invalid_body",
            Self::EmptyBody => "empty_body",
            Self::InvalidImage => "invalid_image",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::ImageTooLarge => "image_too_large",
            Self::UnsupportedImageType => "unsupported_image_type",
            Self::BodyTooLarge => "body_too_large",
            Self::TooManyImages => "too_many_images",
            Self::Forbidden => "forbidden",
            Self::BodyTimeout => "body_timeout",
            Self::UnknownModel => "unknown_model",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::InvalidBundle => "invalid_bundle",
            Self::Starting => "starting",
            Self::Overloaded => "overloaded",
            Self::ShuttingDown => "shutting_down",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Internal => "internal",
        }
    }
}

/// An error that a client sees: a sentence that says what was found and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    /// Where trying again may help: seconds until then.
    pub retry_after: Option<u32>,
}

impl Error {
    /// An error with this `message`, of which at most 2,048 bytes are kept: a library's may quote a whole body.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let retry_after = matches!(kind, Kind::Starting | Kind::Overloaded | Kind::ShuttingDown).then_some(1);
        Self { kind, message: bounded(message.into()), retry_after }
    }
}

impl From<PolicyError> for Error {
    fn from(error: PolicyError) -> Self {
        Self::new(Kind::InvalidParameter, error.to_string())
    }
}

impl From<Unknown> for Error {
    fn from(error: Unknown) -> Self {
        let kind = match error {
            Unknown::Unnamed { .. } => Kind::InvalidParameter,
            Unknown::Name { .. } | Unknown::Version { .. } => Kind::UnknownModel,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ChangeError> for Error {
    fn from(error: ChangeError) -> Self {
        let kind = match error {
            ChangeError::Unknown(unknown) => return unknown.into(),
            ChangeError::Refused(_) => Kind::InvalidBundle,
            ChangeError::Stopping => Kind::ShuttingDown,
            ChangeError::Lost => Kind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        let kind = match error {
            ImageError::Empty => Kind::EmptyBody,
            ImageError::UnknownType { .. } => Kind::UnsupportedImageType,
            ImageError::TooManyPixels { .. } | ImageError::TooLong | ImageError::TooMuchMemory { .. } => {
                Kind::ImageTooLarge
            }
            ImageError::Damaged { .. } => Kind::InvalidImage,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<WorkError> for Error {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Expired => Self::deadline(),
            // What failed inside is in the log; a client can do nothing with it.
            WorkError::Engine(_) | WorkError::Lost => Self::new(Kind::Internal, "the image could not be run"),
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::new(Kind::Overloaded, "the queue is full; try again in a moment"),
            Refused::FlowFull => Self::new(
                Kind::Overloaded,
                "as many images of this connection wait as may; wait for some of their answers first",
            ),
            Refused::Late(late) => {
                // As it is now: more would make the guess no better.
                const MOST: Duration = Duration::from_secs(60);
                let seconds = (late.min(MOST).as_secs_f64().ceil() as u32).max(1);
                let message =
                    format!("so many images wait that the answer would be too late; try again in {seconds} s");
                Self { retry_after: Some(seconds), ..Self::new(Kind::Overloaded, message) }
            }
            Refused::Stopping => Self::new(Kind::ShuttingDown, "the server is shutting down; try another one"),
        }
    }
}

impl Error {
    pub(super) fn too_many_images(most: usize) -> Self {
        Self::new(Kind::TooManyImages, format!("the request has more than {most} images, expected at most {most}"))
    }

    /// As many images of a model wait as may; others may have room.
    pub(super) fn model_full(name: &str, most: usize) -> Self {
        let message = format!("{most} images of model '{name}' wait, as many as may; try again in a moment");
        Self::new(Kind::Overloaded, message)
    }

    /// A body whose connection failed.
    pub(super) fn broken_off(error: &impl std::fmt::Display) -> Self {
        Self::new(Kind::InvalidBody, format!("the body broke off: {error}"))
    }

    /// Values of a tensor that overflow inside the net.
    pub(super) fn not_finite() -> Self {
        Self::new(
            Kind::InvalidBody,
            "the net's values overflow for this image, expected pixels normalised by the model's mean and std",
        )
    }

    pub(super) fn deadline() -> Self {
        Self::new(Kind::DeadlineExceeded, "the request's time ran out before it was answered")
    }
}
