//! A request's body: pieces that were made before the clock started.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// A body in pieces, which are shared and not copied.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    /// Bytes that are left.
    left: u64,
}

/// Bodies of several pieces up to this many bytes are copied together: that costs less than a write or a frame for each.
const COPIED: u64 = 32 * 1024;

impl Pieces {
    pub(super) fn new(pieces: impl Iterator<Item = Bytes>) -> Self {
        let pieces: VecDeque<Bytes> = pieces.filter(|piece| !piece.is_empty()).collect();
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        let all = Self { pieces, left };
        if all.pieces.len() < 2 || left > COPIED { all } else { Self { pieces: [all.whole()].into(), left } }
    }

    /// Bytes that are left.
    pub(super) fn len(&self) -> u64 {
        self.left
    }

    /// The whole body in one piece.
    pub(super) fn whole(&self) -> Bytes {
        if let [only] = self.pieces.as_slices().0
            && self.pieces.len() == 1
        {
            return only.clone();
        }
        let mut whole = BytesMut::with_capacity(usize::try_from(self.left).unwrap_or(0));
        self.pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        whole.freeze()
    }

    fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.left -= piece.len() as u64;
        Some(piece)
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The body of a gRPC call: a message, or messages as they are asked for.
pub(super) enum Outgoing {
    Whole(Pieces),
    Stream { messages: mpsc::Receiver<Pieces>, now: Pieces },
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (messages, now) = match &mut *self {
            Self::Whole(pieces) => return Pin::new(pieces).poll_frame(context),
            Self::Stream { messages, now } => (messages, now),
        };
        loop {
            if let Some(piece) = now.next() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match messages.poll_recv(context) {
                Poll::Ready(Some(message)) => *now = message,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(pieces) if pieces.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(pieces) => pieces.size_hint(),
            Self::Stream { .. } => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_body_is_its_pieces_in_order(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 0..5)) {
            let whole: Vec<u8> = pieces.concat();
            let mut body = Pieces::new(pieces.into_iter().map(Bytes::from));
            prop_assert_eq!(body.len(), whole.len() as u64);
            prop_assert_eq!(&body.whole()[..], &whole[..]);
            let mut sent = Vec::new();
            while let Some(piece) = body.next() {
                prop_assert!(!piece.is_empty());
                sent.extend_from_slice(&piece);
                prop_assert_eq!(body.size_hint().exact(), Some((whole.len() - sent.len()) as u64));
            }
            prop_assert!(body.is_end_stream());
            prop_assert_eq!(sent, whole);
        }
    }
}
