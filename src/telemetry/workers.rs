//! What the threads that run images do: how many there are, how long one has been at it, and what went wrong.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntCounter, IntGauge};

/// All worker threads.
#[derive(Clone)]
pub struct Workers {
    alive: IntGauge,
    /// Written when it is read.
    longest: Gauge,
    /// Batches that ended in a panic.
    pub panics: IntCounter,
    /// When the clock below began.
    started: Instant,
    /// For each worker when it took up what it does, in microseconds of the clock; 0 while it does nothing.
    since: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
}

/// A worker thread that is there, until dropped.
pub struct Worker {
    of: Workers,
    since: Arc<AtomicU64>,
}

/// A worker that does something, until dropped.
pub struct Busy<'w>(&'w Worker);

impl Workers {
    pub(super) fn new() -> Self {
        let alive = IntGauge::new("blockdrop_workers", "Threads that run images.");
        let longest = Gauge::new(
            "blockdrop_worker_busy_seconds",
            "Time that a worker has been at the batch that it runs, of the worker that has been longest; 0 where none runs.",
        );
        let panics = IntCounter::new(
            "blockdrop_worker_panics_total",
            "Batches that ended in a panic, whose images got an error; the worker went on.",
        );
        Self {
            alive: alive.expect("a valid name"),
            longest: longest.expect("a valid name"),
            panics: panics.expect("a valid name"),
            started: Instant::now(),
            since: Arc::default(),
        }
    }

    /// Counts a worker thread.
    pub fn enter(&self) -> Worker {
        self.alive.inc();
        let since = Arc::<AtomicU64>::default();
        self.since.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&since));
        Worker { of: self.clone(), since }
    }

    /// For how long the worker that has been at it longest has run one batch; zero where none runs.
    pub fn longest(&self) -> Duration {
        let all = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let first = all.iter().map(|since| since.load(Ordering::Relaxed)).filter(|since| *since > 0).min();
        first.map_or(Duration::ZERO, |since| self.started.elapsed().saturating_sub(Duration::from_micros(since)))
    }
}

impl Worker {
    /// Says that the worker does something from now on.
    pub fn busy(&self) -> Busy<'_> {
        let now = self.of.started.elapsed().as_micros() as u64;
        self.since.store(now.max(1), Ordering::Relaxed);
        Busy(self)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.since.store(0, Ordering::Relaxed);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.of.alive.dec();
        let mut all = self.of.since.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|since| !Arc::ptr_eq(since, &self.since));
    }
}

impl Collector for Workers {
    fn desc(&self) -> Vec<&Desc> {
        [self.alive.desc(), self.longest.desc(), self.panics.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.longest.set(self.longest().as_secs_f64());
        [self.alive.collect(), self.longest.collect(), self.panics.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_that_has_been_at_it_longest_counts() {
        let workers = Workers::new();
        let (first, second) = (workers.enter(), workers.enter());
        assert_eq!((workers.alive.get(), workers.longest()), (2, Duration::ZERO));
        let long = first.busy();
        while workers.longest() < Duration::from_millis(2) {}
        drop(second.busy());
        let short = second.busy();
        assert!(workers.longest() >= Duration::from_millis(2), "the other one has only begun");
        drop(long);
        let found = workers.longest();
        let began = Duration::from_micros(second.since.load(Ordering::Relaxed));
        assert!(found <= workers.started.elapsed() - began);
        drop((short, first));
        assert_eq!((workers.alive.get(), workers.longest()), (1, Duration::ZERO));
        assert_eq!(workers.collect().len(), 3);
    }
}
