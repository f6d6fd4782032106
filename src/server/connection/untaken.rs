//! What a client has not taken of its answers yet.
//!
//! A client that does not read fills the socket, and over HTTP/2 it may read and give a stream no window: then its answers
//! stay in memory. So each part of an answer is noted from the moment that it is there until it is written or its connection
//! is gone.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

/// The parts of a connection's answers that its client has not taken.
#[derive(Debug, Default)]
pub(super) struct Untaken {
    parts: Mutex<Parts>,
    /// How many there are.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Parts {
    /// Since when, the oldest first.
    since: BTreeMap<u64, Instant>,
    next: u64,
}

impl Untaken {
    /// Since when the oldest part waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.since.first_key_value().map(|(_, &since)| since)
    }

    fn part(self: &Arc<Self>) -> Part {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let number = parts.next;
        parts.next += 1;
        parts.since.insert(number, Instant::now());
        self.count.store(parts.since.len(), Ordering::Relaxed);
        Part { of: Arc::clone(self), number }
    }
}

/// A part of an answer, until its client has taken it.
#[derive(Debug)]
struct Part {
    of: Arc<Untaken>,
    number: u64,
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut parts = self.of.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.since.remove(&self.number);
        self.of.count.store(parts.since.len(), Ordering::Relaxed);
    }
}

/// Bytes of a part; whoever writes them drops them then.
struct Noted {
    bytes: Bytes,
    _part: Part,
}

impl AsRef<[u8]> for Noted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A part has at most so many bytes: a client that takes them slowly is one that takes them.
const PART: usize = 64 << 10;

/// `body` with its parts noted in `untaken`.
pub(super) fn watched(body: Body, untaken: Arc<Untaken>) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let waits = Some(untaken.part());
    Body::new(Answer { body, rest: Bytes::new(), untaken, waits })
}

struct Answer {
    body: Body,
    /// Of what came out of `body` last.
    rest: Bytes,
    untaken: Arc<Untaken>,
    /// There while it is the client's turn: the answer has not been asked for more since its last part.
    waits: Option<Part>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.waits = None;
        if self.rest.is_empty() {
            let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        let most = self.rest.len().min(PART);
        let bytes = self.rest.split_to(most);
        let part = Noted { bytes, _part: self.untaken.part() };
        if !self.is_end_stream() {
            self.waits = Some(self.untaken.part());
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(part)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::StreamExt;

    use super::*;

    /// The next part, if there is one now.
    fn next(body: &mut Body) -> Option<Bytes> {
        let mut context = Context::from_waker(Waker::noop());
        match Pin::new(body).poll_frame(&mut context) {
            Poll::Ready(Some(frame)) => Some(frame.unwrap().into_data().unwrap()),
            Poll::Ready(None) | Poll::Pending => None,
        }
    }

    #[test]
    fn a_part_is_untaken_until_its_bytes_are_dropped() {
        let untaken = Arc::new(Untaken::default());
        let whole: Bytes = (0..PART + 10).map(|at| at as u8).collect();
        let mut body = watched(Body::from(whole.clone()), Arc::clone(&untaken));
        assert!(untaken.oldest().is_some(), "nobody has asked for it");
        let (first, second) = (next(&mut body).unwrap(), next(&mut body).unwrap());
        assert_eq!([&first[..], &second[..]].concat(), whole);
        assert!(body.is_end_stream());
        let of_first = untaken.oldest().unwrap();
        drop(first);
        assert!(untaken.oldest().unwrap() >= of_first);
        drop(second);
        assert_eq!(untaken.oldest(), None);
    }

    #[test]
    fn the_length_is_known_all_the_time() {
        let body = watched(Body::from(vec![0; PART + 10]), Arc::default());
        assert_eq!(body.size_hint().exact(), Some(PART as u64 + 10));
        assert!(watched(Body::empty(), Arc::default()).is_end_stream());
    }

    #[test]
    fn an_answer_that_is_not_there_yet_is_not_the_clients_to_take() {
        let untaken = Arc::new(Untaken::default());
        let waiting = futures_util::stream::once(std::future::ready(Ok::<_, axum::Error>(Bytes::from_static(b"one"))))
            .chain(futures_util::stream::pending());
        let mut body = watched(Body::from_stream(waiting), Arc::clone(&untaken));
        drop(next(&mut body).unwrap());
        assert!(untaken.oldest().is_some(), "it may have more");
        assert_eq!(next(&mut body), None);
        assert_eq!(untaken.oldest(), None);
        drop(body);
        assert_eq!(untaken.oldest(), None);
    }
}
