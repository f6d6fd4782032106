//! Reads on after an early answer.
//!
//! An answer that is sent before its request has been read to the end, such as 413 or 503, is lost if the connection is
//! closed with unread bytes: the system resets it, and a client that is still sending sees that and not the answer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Error;
use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::runtime::Handle;

/// How long a client may go on sending after its answer, and how long it may pause.
const LONGEST: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(5);

/// Reads to its end, and forgets, what the routes leave of a request's body.
pub(super) async fn linger(request: Request, next: Next) -> Response {
    let request = request
        .map(|body| if body.is_end_stream() { body } else { Body::from_stream(Unread(Some(body.into_data_stream()))) });
    next.run(request).await
}

/// A body; `None` once it was read to its end.
struct Unread(Option<BodyDataStream>);

impl Stream for Unread {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let chunk = std::task::ready!(body.poll_next_unpin(context));
        if !matches!(chunk, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(chunk)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        // The connection reads on as long as somebody takes what it reads. Without a runtime there is none either.
        if let (Some(body), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            drop(runtime.spawn(tokio::time::timeout(LONGEST, discard(body))));
        }
    }
}

async fn discard(mut body: BodyDataStream) {
    while let Ok(Some(Ok(_))) = tokio::time::timeout(PAUSE, body.next()).await {}
}
