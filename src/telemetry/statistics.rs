//! What a model has done since it was loaded, as the Open Inference Protocol's statistics extension counts it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often something happened, and how long it took in all.
#[derive(Debug, Default)]
pub struct Tally {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Tally {
    pub fn add(&self, took: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How often, and nanoseconds in all.
    pub fn read(&self) -> (u64, u64) {
        (self.count.load(Relaxed), self.ns.load(Relaxed))
    }
}

/// A model's counts.
#[derive(Debug, Default)]
pub struct Statistics {
    last: AtomicU64,
    images: AtomicU64,
    executions: AtomicU64,
    /// Requests whose images were all answered.
    pub success: Tally,
    /// Requests of which an image was not.
    pub fail: Tally,
    /// Waiting, of requests that succeeded.
    pub queue: Tally,
    /// Decoding and preprocessing.
    pub input: Tally,
    /// Policy and path.
    pub infer: Tally,
}

impl Statistics {
    /// Counts a group of `images` that ran a path together.
    pub fn executed(&self, images: usize) {
        self.executions.fetch_add(1, Relaxed);
        self.images.fetch_add(images as u64, Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// When the last image ran, in milliseconds since the epoch; 0 where none has.
    pub fn last(&self) -> u64 {
        self.last.load(Relaxed)
    }

    /// Images that ran.
    pub fn images(&self) -> u64 {
        self.images.load(Relaxed)
    }

    /// Groups of images that ran together.
    pub fn executions(&self) -> u64 {
        self.executions.load(Relaxed)
    }
}
