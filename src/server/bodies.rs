//! Memory for the bodies of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Error, Kind};
use crate::engine::heap;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Rejected;

/// Bodies are accounted for in units of this many bytes.
pub(super) const BODY_UNIT: usize = 1024;

/// Bodies in memory, up to a limit.
pub struct Bodies {
    /// In units.
    room: Arc<Semaphore>,
    /// Bytes that came since freed memory last went back to the system.
    passed: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Bodies {
    /// At most so many bytes.
    pub fn new(most: usize, metrics: Arc<Metrics>) -> Self {
        Self { room: Arc::new(Semaphore::new(most.div_ceil(BODY_UNIT))), passed: AtomicUsize::new(0), metrics }
    }

    /// Memory for `bytes` more of a body.
    ///
    /// # Errors
    /// Bodies in memory are at their limit.
    pub fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        self.passed.fetch_add(bytes, Ordering::Relaxed);
        let units = u32::try_from(bytes.div_ceil(BODY_UNIT)).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(units).map_err(|_| {
            self.metrics.reject(Rejected::Memory);
            Error::new(Kind::Overloaded, "too many bodies are in memory; try again in a moment")
        })
    }

    /// Gives freed memory back to the system every few seconds in which large bodies came: the allocator keeps it, up to
    /// many times what bodies may take. Never ends.
    pub async fn trim(&self) {
        const PAUSE: Duration = Duration::from_secs(5);
        const WORTH: usize = 32 << 20;
        loop {
            tokio::time::sleep(PAUSE).await;
            if self.passed.load(Ordering::Relaxed) >= WORTH {
                self.passed.store(0, Ordering::Relaxed);
                drop(tokio::task::spawn_blocking(heap::trim).await);
            }
        }
    }
}
