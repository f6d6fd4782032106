//! Memory for the bodies of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Error, Kind};
use crate::engine::heap;
use crate::scheduler::Flow;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Rejected;

/// Bodies are accounted for in units of this many bytes.
pub(super) const BODY_UNIT: usize = 1024;

/// Bodies in memory, up to a limit, and of one connection as much as is left for others.
pub struct Bodies {
    /// In units.
    room: Arc<Semaphore>,
    /// Units of one body, which a connection may always have where there are as many.
    one: usize,
    /// Bytes that came since freed memory last went back to the system.
    passed: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// Memory of a part of a body, until it is dropped.
#[derive(Debug)]
pub(super) struct Part {
    permit: OwnedSemaphorePermit,
    flow: Arc<Flow>,
}

impl Part {
    /// Bytes that it is for.
    pub(super) fn bytes(&self) -> usize {
        self.permit.num_permits() * BODY_UNIT
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.flow.release(self.permit.num_permits());
    }
}

impl Bodies {
    /// At most so many bytes, with bodies of at most `one` byte each.
    pub fn new(most: usize, one: usize, metrics: Arc<Metrics>) -> Self {
        let room = Arc::new(Semaphore::new(most.div_ceil(BODY_UNIT)));
        Self { room, one: one.div_ceil(BODY_UNIT), passed: AtomicUsize::new(0), metrics }
    }

    /// Memory for `bytes` more of a body that comes over the connection of `flow`.
    ///
    /// # Errors
    /// Bodies in memory are at their limit, or those of this connection take more than is left for others.
    pub(super) fn hold(&self, flow: &Arc<Flow>, bytes: usize) -> Result<Part, Error> {
        self.passed.fetch_add(bytes, Ordering::Relaxed);
        let refused = |reason, message| {
            self.metrics.reject(reason);
            Error::new(Kind::Overloaded, message)
        };
        let units = bytes.div_ceil(BODY_UNIT);
        let permit =
            u32::try_from(units).ok().and_then(|units| Arc::clone(&self.room).try_acquire_many_owned(units).ok());
        let permit =
            permit.ok_or_else(|| refused(Rejected::Memory, "too many bodies are in memory; try again in a moment"))?;
        let own = flow.hold(units);
        let part = Part { permit, flow: Arc::clone(flow) };
        if own > self.one.max(self.room.available_permits()) {
            return Err(refused(
                Rejected::ConnectionFull,
                "as much of this connection's bodies is in memory as may be; wait for some of their answers first",
            ));
        }
        Ok(part)
    }

    /// Gives freed memory back to the system every few seconds in which large bodies came or many connections went: the
    /// allocator keeps it, up to many times what these may take. Never ends.
    pub async fn trim(&self) {
        const PAUSE: Duration = Duration::from_secs(5);
        const WORTH: usize = 32 << 20;
        const MANY: i64 = 64;
        let mut most = 0;
        loop {
            tokio::time::sleep(PAUSE).await;
            let open = self.metrics.open_connections();
            most = most.max(open);
            if self.passed.load(Ordering::Relaxed) >= WORTH || most - open >= MANY {
                most = open;
                self.passed.store(0, Ordering::Relaxed);
                drop(tokio::task::spawn_blocking(heap::trim).await);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_as_much_as_is_left_for_others_and_one_body_always() {
        let metrics = Arc::new(Metrics::new("cpu", "none"));
        let bodies = Bodies::new(10 * BODY_UNIT, 3 * BODY_UNIT, metrics);
        let (one, other) = (Flow::new(), Flow::new());
        let hold = |flow: &Arc<Flow>, units: usize| bodies.hold(flow, units * BODY_UNIT).ok();
        let kept: Vec<Part> = (0..5).map(|_| hold(&one, 1).expect("there is as much left")).collect();
        assert!(hold(&one, 1).is_none(), "6 of 10");
        let others = hold(&other, 3).expect("as much is left");
        assert_eq!(others.bytes(), 3 * BODY_UNIT);
        assert!(hold(&other, 1).is_none(), "4 of its own, where 1 would be left");
        let whole = Flow::new();
        let last = hold(&whole, 2).expect("less than a body");
        assert!(hold(&whole, 1).is_none(), "nothing is left");
        drop((kept, last));
        assert!(hold(&whole, 3).is_some());
        drop(others);
        assert_eq!(bodies.room.available_permits(), 10, "all came back");
        assert!(hold(&one, 5).is_some());
    }
}
