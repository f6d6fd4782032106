//! What became of requests: one reply, and the tally of many.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::latencies::Latencies;

/// A request to send, by number. What it looks like on the wire is prepared before the clock starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Which of [`crate::plan::Plan::arms`].
    pub arm: usize,
    pub load: Payload,
}

/// What a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// This and the images after it in the pool, around its end, as many as a request has.
    Images { first: usize },
    /// A bad input, which the server has to refuse (by a number that picks the kind).
    Bad { kind: usize },
    /// A request that is broken on purpose: no answer is expected, only that others are not harmed.
    Broken { fault: Fault, first: usize },
}

/// How a client misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Goes away before the answer.
    Disconnect,
    /// Sends bytes that are no HTTP.
    Junk,
    /// Sends a part of the body, a few bytes at a time, and never the rest.
    SlowBody,
    /// Sends headers of a megabyte.
    GiantHeaders,
    /// Closes its writing side in the middle of the body.
    HalfClose,
}

impl Fault {
    pub const ALL: [Self; 5] = [Self::Disconnect, Self::Junk, Self::SlowBody, Self::GiantHeaders, Self::HalfClose];
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Answered as it should be, an entry for each image.
    Answered(Vec<Image>),
    /// The server said no in its protocol: overload (503, 429, `UNAVAILABLE`, `RESOURCE_EXHAUSTED`), or 4xx to a bad
    /// input.
    Refused(Cause),
    /// Anything else: no connection, a broken answer, a status that was not due, a bad input that was answered.
    Failed(Cause),
    /// No answer within the plan's timeout, or the server's own 504.
    TimedOut,
    /// A [`Payload::Broken`] request, over; whatever the server did.
    Broken(Fault),
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Short, of a bounded set, to count by: `503 overloaded`, `connect`, `no JSON`.
    pub kind: String,
    /// The whole sentence.
    pub message: String,
}

/// What an answer says of one image.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Image {
    /// Whether the class is the label; absent without labels.
    pub correct: Option<bool>,
    /// The answer differs from the first one for the same image and arm by more than rounding.
    pub changed: bool,
    /// Blocks kept.
    pub blocks: Option<u16>,
    pub flops: Option<Flops>,
    pub stages: Option<Stages>,
}

/// FLOPs of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flops {
    /// Policy and path.
    pub spent: u64,
    /// Of the full net; 0 where the protocol does not say.
    pub full: u64,
}

/// Milliseconds that the server says it spent on an image.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Stages {
    pub decode: f64,
    pub preprocess: f64,
    pub queue: f64,
    pub policy: f64,
    pub backbone: f64,
    pub total: f64,
}

/// Counts of requests. `sent` is the sum of all that follow it, once nothing is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    pub sent: u64,
    pub answered: u64,
    pub refused: u64,
    pub failed: u64,
    pub timed_out: u64,
    /// Broken on purpose.
    pub broken: u64,
}

impl Counts {
    /// Whether every request is accounted for.
    pub fn whole(&self) -> bool {
        self.sent == self.answered + self.refused + self.failed + self.timed_out + self.broken
    }

    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.refused += other.refused;
        self.failed += other.failed;
        self.timed_out += other.timed_out;
        self.broken += other.broken;
    }
}

/// What many requests of one arm came to.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub counts: Counts,
    /// Those that carried good images, to which an answer is due.
    pub good: u64,
    /// Answered within the plan's objective for latency, or its timeout where it has none.
    pub in_time: u64,
    /// Microseconds from when a request was due (closed loop: sent) to its whole answer. One that timed out counts with
    /// the timeout, which is less than it would have taken.
    pub latency: Latencies,
    /// Microseconds from when a request was really sent; answered ones only.
    pub service: Latencies,
    /// Microseconds from when a request was due until it was sent: what the harness itself was late.
    pub delay: Latencies,
    /// Microseconds from due to a refusal.
    pub refusal: Latencies,
    /// Images answered.
    pub images: u64,
    pub labelled: u64,
    pub correct: u64,
    pub changed: u64,
    /// Latency of requests by the blocks kept for their images (of several images: the mean, rounded).
    pub by_blocks: BTreeMap<u16, Latencies>,
    /// Images by the blocks kept.
    pub blocks: BTreeMap<u16, u64>,
    /// Images that told FLOPs, and the sums.
    pub counted: u64,
    pub flops_spent: f64,
    pub flops_full: f64,
    /// Images that told times, and the sums of milliseconds.
    pub timed: u64,
    pub stages: Stages,
    /// Refusals, failures by [`Cause::kind`]: how many, and the first message.
    pub causes: BTreeMap<String, (u64, String)>,
    /// Seconds that the arm was under load.
    pub seconds: f64,
}
