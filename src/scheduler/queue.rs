//! The line of waiting images, shared by the threads that fill it and the workers that take batches from it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::line::{Batch, Kind, Line, Place, Stage, Waits};

pub(super) struct Queue<K, T> {
    state: Mutex<State<K, T>>,
    changed: Condvar,
}

struct State<K, T> {
    line: Line<K, T>,
    /// Batches that are being looked at, whose items may come back.
    looking: usize,
    closed: bool,
}

/// A batch that a worker has taken.
pub(super) struct Taken<'q, K: Kind, T: Waits> {
    queue: &'q Queue<K, T>,
    pub(super) batch: Batch<K, T>,
}

impl<K: Kind, T: Waits> Queue<K, T> {
    pub(super) fn new() -> Self {
        let state = State { line: Line::new(), looking: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<K, T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item.
    ///
    /// # Errors
    /// Gives the item back when the queue is closed.
    pub(super) fn push(&self, kind: K, item: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.closed {
            return Err(item);
        }
        state.line.push(kind, item);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for items and takes a batch, as [`Line::take`] does. `None` once the queue is closed and nothing is left.
    pub(super) fn take(&self, most: usize, workers: usize) -> Option<Taken<'_, K, T>> {
        let mut state = self.lock();
        let batch = loop {
            if let Some(batch) = state.line.take(most, workers, Instant::now()) {
                break batch;
            }
            if state.closed && state.looking == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        if batch.kind.stage() == Stage::Look {
            state.looking += 1;
        }
        let more = !state.line.is_empty();
        drop(state);
        if more {
            self.changed.notify_one();
        }
        Some(Taken { queue: self, batch })
    }

    /// Takes no more items; those that wait are still given out.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

impl<K: Kind, T: Waits> Taken<'_, K, T> {
    /// Puts items that were looked at back in the line, each by its age, for this worker or another to run. A closed
    /// queue takes them too.
    pub(super) fn put_back(&self, items: impl IntoIterator<Item = (K, Place, T)>) {
        let mut state = self.queue.lock();
        items.into_iter().for_each(|(kind, place, item)| state.line.put_back(kind, place, item));
    }
}

impl<K: Kind, T: Waits> Drop for Taken<'_, K, T> {
    fn drop(&mut self) {
        if self.batch.kind.stage() == Stage::Look {
            let mut state = self.queue.lock();
            state.looking -= 1;
            if state.closed {
                // Workers that wait for what may come back.
                self.queue.changed.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Kind for (Stage, u8) {
        fn stage(&self) -> Stage {
            self.0
        }
    }

    struct Item {
        name: usize,
        path: u8,
    }

    impl Waits for Item {
        fn is_wanted(&self, _: Instant) -> bool {
            true
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// With several producers and workers, every item is looked at and run once, whenever the queue closes.
        #[test]
        fn nothing_is_lost_or_given_out_twice(
            items in prop::collection::vec(0u8..4, 0..200), workers in 1usize..5, most in 1usize..9,
        ) {
            let queue = Queue::new();
            let ran = Mutex::new(Vec::new());
            std::thread::scope(|scope| {
                for _ in 0..workers {
                    scope.spawn(|| {
                        while let Some(mut taken) = queue.take(most, workers) {
                            let (stage, path) = taken.batch.kind;
                            let items = std::mem::take(&mut taken.batch.items);
                            assert!(!items.is_empty() && items.len() <= most);
                            if stage == Stage::Look {
                                let decided = |(place, item): (Place, Item)| ((Stage::Run, item.path), place, item);
                                taken.put_back(items.into_iter().map(decided));
                            } else {
                                assert!(items.iter().all(|(_, item)| item.path == path));
                                ran.lock().unwrap().extend(items.into_iter().map(|(_, item)| item.name));
                            }
                        }
                    });
                }
                let (left, right) = items.split_at(items.len() / 2);
                let producers = [(0, left), (left.len(), right)].map(|(from, part)| {
                    let queue = &queue;
                    scope.spawn(move || {
                        for (at, &path) in part.iter().enumerate() {
                            let kind = if path == 0 { (Stage::Run, 0) } else { (Stage::Look, 0) };
                            assert!(queue.push(kind, Item { name: from + at, path }).is_ok());
                        }
                    })
                });
                producers.into_iter().for_each(|producer| producer.join().unwrap());
                queue.close();
            });
            let mut ran = ran.into_inner().unwrap();
            ran.sort_unstable();
            prop_assert_eq!(ran, (0..items.len()).collect::<Vec<_>>());
            let late = queue.push((Stage::Run, 0), Item { name: 0, path: 0 });
            prop_assert!(late.is_err());
        }
    }
}
