//! A request's images out of its body: raw bytes, multipart, or JSON.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::json::Object;
use crate::registry::Model;
use crate::scheduler::Flow;
use crate::server::bodies::{BODY_UNIT, Part};
use crate::server::classify::Service;
use crate::server::error::{Error, Kind};
use crate::text::shortened;

/// A body in memory, and its share of the memory for bodies.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _memory: Vec<Part>,
}

/// Reads a whole body that comes over the connection of `flow`, `expected` to be what is said.
///
/// # Errors
/// Larger than the limit (found from its stated length before anything is read), too slow, broken off, or no memory
/// for it now.
pub(super) async fn read(
    service: &Service,
    flow: &Arc<Flow>,
    headers: &HeaderMap,
    body: Body,
    deadline: Instant,
    expected: &str,
) -> Result<Held, Error> {
    let most = service.limits.body;
    let too_large =
        |found: &str| Error::new(Kind::BodyTooLarge, format!("the body has {found} bytes, expected at most {most}"));
    let stated = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if let Some(stated) = stated.filter(|stated| *stated > most) {
        return Err(too_large(&stated.to_string()));
    }
    let mut memory = Vec::new();
    let mut held = 0;
    let mut bytes = BytesMut::new();
    let mut stream = body.into_data_stream();
    loop {
        let chunk = tokio::time::timeout_at(tokio::time::Instant::from_std(deadline), stream.next()).await;
        let chunk = chunk.map_err(|_| {
            let found = bytes.len();
            Error::new(Kind::BodyTimeout, format!("the body did not arrive in time: found {found} bytes of it"))
        })?;
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| failed(&error))?;
        let length = bytes.len() + chunk.len();
        if length > most {
            return Err(too_large(&format!("more than {most}")));
        }
        // Memory is asked for as the body arrives, not as its head promises: a slow one holds little. Doubling keeps the
        // number of permits small; whole units, so that many small chunks cost no more than one large.
        if length > held {
            let more = (length - held).max(held).min(most - held).next_multiple_of(BODY_UNIT);
            memory.push(service.bodies.hold(flow, more)?);
            held += more;
        }
        bytes.extend_from_slice(&chunk);
        // What comes out of a decompressor is always there: other requests get their turns all the same.
        tokio::task::consume_budget().await;
    }
    if bytes.is_empty() {
        return Err(Error::new(Kind::EmptyBody, format!("the body is empty, expected {expected}")));
    }
    Ok(Held { bytes: bytes.freeze(), _memory: memory })
}

/// Why a body could not be read: said by what [decompresses](super::encoding) it, or its connection failed.
fn failed(error: &axum::Error) -> Error {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let mut said = causes.filter_map(|error| error.downcast_ref::<Error>());
    said.next().cloned().unwrap_or_else(|| Error::broken_off(error))
}

/// What `/v1/classify` takes.
pub(super) const EXPECTED: &str = "an image's bytes, multipart/form-data with parts named image, \
                        or JSON {\"images\":[{\"b64\":\"...\"}]}";

/// The images of a body for `model`, in order; one that cannot be taken out is an error of its own.
///
/// # Errors
/// The body as a whole cannot be understood, or has more images than may be.
pub(super) async fn images(
    service: &Service,
    flow: &Flow,
    model: &Model,
    headers: &HeaderMap,
    body: &Bytes,
    deadline: Instant,
) -> Result<Vec<Result<Bytes, Error>>, Error> {
    let most = service.most_images(model);
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    match content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
        "multipart/form-data" => multipart(content_type, body, most).await,
        "application/json" => {
            let whole = body.clone();
            service.decoders.aside(flow, body.len(), deadline, move || json(&whole, most)).await?
        }
        other if body.starts_with(b"{") => Err(Error::new(
            Kind::InvalidBody,
            format!("the body looks like JSON: found content-type '{other}', expected application/json"),
        )),
        // Anything else is taken for an image: its first bytes say which, not a header that clients set carelessly.
        _ => Ok(vec![Ok(body.clone())]),
    }
}

/// Images in a form.
#[derive(ToSchema)]
#[schema(as = ImageForm)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct Form {
    /// One part for each image.
    #[schema(min_items = 1)]
    image: Vec<super::openapi::Bytes>,
}

pub(in crate::server) async fn multipart(
    content_type: &str,
    body: &Bytes,
    most: usize,
) -> Result<Vec<Result<Bytes, Error>>, Error> {
    let wrong = |problem: String| Error::new(Kind::InvalidBody, format!("multipart: {problem}"));
    let boundary = multer::parse_boundary(content_type).map_err(|error| wrong(error.to_string()))?;
    let whole = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(body.clone())]);
    let mut parts = multer::Multipart::new(whole, boundary);
    let mut images = Vec::new();
    while let Some(part) = parts.next_field().await.map_err(|error| wrong(error.to_string()))? {
        if part.name() != Some("image") {
            let name = shortened(part.name().unwrap_or(""));
            return Err(wrong(format!("found a part named '{name}', expected parts named image")));
        }
        if images.len() == most {
            return Err(Error::too_many_images(most));
        }
        images.push(Ok(part.bytes().await.map_err(|error| wrong(error.to_string()))?));
    }
    if images.is_empty() {
        return Err(Error::new(Kind::EmptyBody, "multipart: found no parts, expected parts named image"));
    }
    Ok(images)
}

/// Images in JSON.
#[derive(Deserialize, ToSchema)]
#[schema(as = EncodedImages)]
#[serde(deny_unknown_fields)]
pub(super) struct Encoded<'a> {
    #[serde(borrow, deserialize_with = "bounded")]
    #[schema(min_items = 1, value_type = Vec<EncodedImage<'a>>)]
    images: Vec<Object<EncodedImage<'a>>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EncodedImage<'a> {
    /// An encoded image's bytes in standard base64.
    #[serde(borrow)]
    #[schema(value_type = String, content_encoding = "base64")]
    b64: Cow<'a, str>,
}

/// `--max-images` is at most this: a body of many tiny entries is refused before they are all in memory.
pub const MOST_IMAGES: usize = 4096;

/// A list of at most [`MOST_IMAGES`] and one.
fn bounded<'de, D: Deserializer<'de>>(list: D) -> Result<Vec<Object<EncodedImage<'de>>>, D::Error> {
    struct Bounded;

    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<Object<EncodedImage<'de>>>;

        fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(out, "a list of at most {MOST_IMAGES} images")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut images = Vec::new();
            while let Some(image) = list.next_element()? {
                images.push(image);
                if images.len() > MOST_IMAGES {
                    return Err(A::Error::invalid_length(images.len(), &self));
                }
            }
            Ok(images)
        }
    }

    list.deserialize_seq(Bounded)
}

pub(in crate::server) fn json(body: &Bytes, most: usize) -> Result<Vec<Result<Bytes, Error>>, Error> {
    let Object(encoded): Object<Encoded<'_>> = serde_json::from_slice(body).map_err(|error| {
        Error::new(Kind::InvalidBody, format!("JSON: {error}; expected {{\"images\":[{{\"b64\":\"...\"}}]}}"))
    })?;
    if encoded.images.len() > most {
        return Err(Error::too_many_images(most));
    }
    let decode = |Object(image): Object<EncodedImage<'_>>| {
        base64::engine::general_purpose::STANDARD.decode(&*image.b64).map(Bytes::from).map_err(|error| {
            Error::new(Kind::InvalidImage, format!("b64: {error}, expected an image's bytes in standard base64"))
        })
    };
    Ok(encoded.images.into_iter().map(decode).collect())
}
