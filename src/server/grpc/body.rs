//! A request's body as it arrives: each message within the limits of size, memory and time.
//!
//! A gRPC body is a row of messages, each with a byte that says whether it is compressed and four with its length in
//! front. Memory for a message is asked for as it arrives, and held until it is answered.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tonic::Status;

use crate::scheduler::Flow;
use crate::server::bodies::{BODY_UNIT, Part};
use crate::server::classify::Service;
use crate::server::error::{Error, Kind};

/// A message's share of the memory for bodies.
pub(super) type Memory = Vec<Part>;

/// The memory of messages that have arrived whole and were not taken up yet, in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct Arrived(Arc<Mutex<VecDeque<Memory>>>);

impl Arrived {
    /// The memory of the next message.
    pub(super) fn next(&self) -> Memory {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or_default()
    }

    fn push(&self, memory: Memory) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(memory);
    }
}

/// `body` within the limits of `service`; the memory of its messages is in [`Arrived`]. A message has its time from its
/// first byte on; of a `unary` call the body has it, from the call's head on.
pub(super) fn limited(service: Arc<Service>, flow: Arc<Flow>, body: Body, unary: bool) -> (Body, Arrived) {
    let arrived = Arrived::default();
    let late = unary.then(|| service.limits.time).map(|time| Box::pin(tokio::time::sleep(time)));
    let messages = Messages {
        body: body.into_data_stream(),
        service,
        flow,
        arrived: arrived.clone(),
        head: Vec::with_capacity(HEAD),
        left: 0,
        memory: Memory::new(),
        held: 0,
        length: 0,
        unary,
        late,
        begun: BytesMut::new(),
        whole: VecDeque::new(),
        ended: false,
    };
    (Body::from_stream(messages), arrived)
}

/// Bytes before a message.
const HEAD: usize = 5;

struct Messages {
    body: BodyDataStream,
    service: Arc<Service>,
    flow: Arc<Flow>,
    arrived: Arrived,
    /// What has come of a message's head.
    head: Vec<u8>,
    /// What is to come of the message itself.
    left: usize,
    length: usize,
    memory: Memory,
    /// Bytes that `memory` is for.
    held: usize,
    unary: bool,
    /// When a message that has begun has to be there, or a unary call's body.
    late: Option<Pin<Box<tokio::time::Sleep>>>,
    /// What has come of a message that is not whole yet. Copied together: a client may send a byte at a time.
    begun: BytesMut,
    /// Pieces of messages that are.
    whole: VecDeque<Bytes>,
    ended: bool,
}

impl Messages {
    /// Takes a piece of the body that has arrived.
    fn arrive(&mut self, mut chunk: Bytes) -> Result<(), Error> {
        let whole = self.follow(&chunk)?;
        if whole > 0 {
            self.hand_on();
            self.whole.push_back(chunk.split_to(whole));
        }
        self.begun.extend_from_slice(&chunk);
        Ok(())
    }

    fn hand_on(&mut self) {
        if !self.begun.is_empty() {
            self.whole.push_back(std::mem::take(&mut self.begun).freeze());
        }
    }

    /// Follows `chunk` from message to message; how many of its bytes belong to whole ones.
    fn follow(&mut self, mut chunk: &[u8]) -> Result<usize, Error> {
        let (all, mut whole) = (chunk.len(), 0);
        let most = self.service.limits.body;
        while !chunk.is_empty() {
            if self.late.is_none() {
                let until = Instant::now() + self.service.limits.time;
                self.late = Some(Box::pin(tokio::time::sleep_until(until.into())));
            }
            if self.head.len() < HEAD {
                let (head, rest) = chunk.split_at(chunk.len().min(HEAD - self.head.len()));
                self.head.extend_from_slice(head);
                chunk = rest;
                if let [_, length @ ..] = self.head.as_slice()
                    && let Ok(length) = <[u8; 4]>::try_from(length)
                {
                    self.length = u32::from_be_bytes(length) as usize;
                    self.left = self.length;
                }
                if self.head.len() < HEAD {
                    break;
                }
                if self.length > most {
                    let found = self.length;
                    return Err(Error::new(
                        Kind::BodyTooLarge,
                        format!("the message has {found} bytes, expected at most {most}"),
                    ));
                }
            }
            let taken = chunk.len().min(self.left);
            self.left -= taken;
            chunk = &chunk[taken..];
            let there = self.length - self.left;
            // As for bodies over HTTP: doubling keeps the number of permits small.
            if there > self.held {
                let more = (there - self.held).max(self.held).min(self.length - self.held).next_multiple_of(BODY_UNIT);
                self.memory.push(self.service.bodies.hold(&self.flow, more)?);
                self.held += more;
            }
            if self.left == 0 {
                self.arrived.push(std::mem::take(&mut self.memory));
                self.head.clear();
                (self.held, self.length) = (0, 0);
                if !self.unary {
                    self.late = None;
                }
                whole = all - chunk.len();
            }
        }
        Ok(whole)
    }
}

impl Stream for Messages {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(piece) = self.whole.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.body.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(chunk))) => {
                    if let Err(error) = self.arrive(chunk) {
                        self.ended = true;
                        return Poll::Ready(Some(Err(error.into())));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(Status::cancelled(format!("the body broke off: {error}")))));
                }
                // What is there of a message that is not whole is for the reader to refuse.
                Poll::Ready(None) => {
                    self.ended = true;
                    self.hand_on();
                }
                Poll::Pending => {
                    let late = self.late.as_mut().is_some_and(|late| late.as_mut().poll(context).is_ready());
                    if !late {
                        return Poll::Pending;
                    }
                    self.ended = true;
                    let (found, all) = (self.length - self.left, self.length);
                    let found =
                        if all > 0 { format!("found {found} of its {all} bytes") } else { "found none".to_owned() };
                    let error = Error::new(Kind::BodyTimeout, format!("the message did not arrive in time: {found}"));
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }
}
