//! Bodies that are compressed: of requests by gzip or deflate, of answers as the client likes it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder};
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::StreamReader;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

use super::ready::AsItIs;
use crate::server::error::{Error, Kind};
use crate::text::shortened;

/// What bodies of requests may be compressed by, as an `Accept-Encoding` header has it.
pub(super) const ACCEPTED: &str = "gzip, deflate";

/// Compresses answers that are worth it where the client takes that.
pub(in crate::server) fn compressed(routes: Router) -> Router {
    const WORTH_BYTES: u64 = 1024;
    let open = |_, _, _: &HeaderMap, extensions: &Extensions| extensions.get::<AsItIs>().is_none();
    let worth = SizeAbove::new(WORTH_BYTES).and(NotForContentType::IMAGES).and(NotForContentType::SSE).and(open);
    // It takes time of the threads that serve.
    routes.layer(CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(worth))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Gzip,
    /// The zlib format, which HTTP calls deflate.
    Deflate,
}

impl Encoding {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// What a request's body is encoded by.
    ///
    /// # Errors
    /// It is something else, or several things.
    fn of(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let values = headers.get_all(header::CONTENT_ENCODING).iter();
        let text = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect::<Vec<_>>().join(", ");
        let lower = text.to_ascii_lowercase();
        let mut names = lower.split(',').map(str::trim).filter(|name| !matches!(*name, "" | "identity"));
        match (names.next(), names.next()) {
            (None, _) => Ok(None),
            (Some("gzip" | "x-gzip"), None) => Ok(Some(Self::Gzip)),
            (Some("deflate"), None) => Ok(Some(Self::Deflate)),
            _ => {
                let found = shortened(&text);
                let message = format!("found content-encoding '{found}', expected one of: {ACCEPTED}");
                Err(Error::new(Kind::UnsupportedEncoding, message))
            }
        }
    }
}

/// Decompresses bodies as they are read. What is compressed may have at most `most` bytes; what comes out is for the
/// reader to bound.
pub(super) async fn decompress(State(most): State<usize>, request: Request, next: Next) -> Result<Response, Error> {
    let (mut head, mut body) = request.into_parts();
    if let Some(encoding) = Encoding::of(&head.headers)?
        && !body.is_end_stream()
    {
        // Both are of what is compressed.
        head.headers.remove(header::CONTENT_ENCODING);
        let stated = head.headers.remove(header::CONTENT_LENGTH);
        let stated = stated.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if let Some(stated) = stated.filter(|stated| *stated > most) {
            return Err(too_large(&stated.to_string(), most));
        }
        body = decoded(encoding, body, most);
    }
    Ok(next.run(Request::from_parts(head, body)).await)
}

fn too_large(found: &str, most: usize) -> Error {
    Error::new(Kind::BodyTooLarge, format!("the compressed body has {found} bytes, expected at most {most}"))
}

/// The decompressed body; its errors are [`Error`]s.
fn decoded(encoding: Encoding, body: Body, most: usize) -> Body {
    const CHUNK: usize = 16 << 10;
    /// Bytes that may arrive for nothing.
    const FOR_NOTHING: usize = 64 << 10;
    let mut arrived = 0;
    let came_out = Arc::new(AtomicUsize::new(0));
    let so_far = Arc::clone(&came_out);
    let compressed = body.into_data_stream().map(move |chunk| -> io::Result<Bytes> {
        let chunk = chunk.map_err(|error| io::Error::other(Error::broken_off(&error)))?;
        // Small streams one after another cost far more than their bytes, and what compresses makes nothing longer.
        let out = so_far.load(Ordering::Relaxed);
        if arrived > out + out / 8 + FOR_NOTHING {
            return Err(io::Error::other(padded(encoding, arrived, out)));
        }
        arrived += chunk.len();
        // A stream may decompress to nothing for ever.
        if arrived > most { Err(io::Error::other(too_large(&format!("more than {most}"), most))) } else { Ok(chunk) }
    });
    let compressed = StreamReader::new(compressed);
    // Streams that follow each other are one, as gzip has it; anything else behind the end is an error.
    let decoder: Pin<Box<dyn AsyncRead + Send>> = match encoding {
        Encoding::Gzip => {
            let mut decoder = GzipDecoder::new(compressed);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        Encoding::Deflate => {
            let mut decoder = ZlibDecoder::new(compressed);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
    };
    Body::from_stream(stream::try_unfold((decoder, came_out), move |(mut decoder, came_out)| async move {
        // What little came may become much: others get their turn.
        tokio::task::coop::consume_budget().await;
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let length = decoder.read_buf(&mut chunk).await.map_err(|error| damaged(encoding, &error))?;
        came_out.fetch_add(length, Ordering::Relaxed);
        Ok::<_, Error>((length > 0).then(|| (chunk.freeze(), (decoder, came_out))))
    }))
}

fn padded(encoding: Encoding, arrived: usize, out: usize) -> Error {
    let name = encoding.name();
    let message =
        format!("{name}: found {arrived} bytes that decompress to {out}, expected a stream that makes them fewer");
    Error::new(Kind::InvalidBody, message)
}

/// Why a body cannot be decompressed.
fn damaged(encoding: Encoding, error: &io::Error) -> Error {
    if let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        return error.clone();
    }
    let name = encoding.name();
    let message = format!("{name}: the body is damaged or ends too early, expected a whole {name} stream");
    Error::new(Kind::InvalidBody, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_told_by_their_names() {
        let of = |values: &[&'static str]| {
            let values = values.iter().map(|value| (header::CONTENT_ENCODING, value.parse().unwrap()));
            Encoding::of(&HeaderMap::from_iter(values))
        };
        for (values, expected) in [
            (&[][..], None),
            (&[""], None),
            (&["identity"], None),
            (&["gzip"], Some(Encoding::Gzip)),
            (&["X-GZip"], Some(Encoding::Gzip)),
            (&["identity, deflate"], Some(Encoding::Deflate)),
        ] {
            assert_eq!(of(values), Ok(expected), "{values:?}");
        }
        for values in [&["br"][..], &["zstd"], &["gzip, gzip"], &["gzip,br"], &["g\u{e9}zip"]] {
            let error = of(values).expect_err("not read");
            assert_eq!(error.kind, Kind::UnsupportedEncoding, "{values:?}");
        }
        let mut twice = HeaderMap::new();
        for value in ["gzip", "deflate"] {
            twice.append(header::CONTENT_ENCODING, value.parse().unwrap());
        }
        let error = Encoding::of(&twice).expect_err("two of them");
        assert_eq!(error.message, "found content-encoding 'gzip, deflate', expected one of: gzip, deflate");
    }
}
