//! The line of waiting images, shared by the threads that fill it and the workers that take batches from it, and beside it
//! what may be done when nothing waits.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::fair::Place;
use super::line::{Batch, Kind, Line, Stage, Waits};

pub(super) struct Queue<K, T, S> {
    state: Mutex<State<K, T, S>>,
    changed: Condvar,
}

struct State<K, T, S> {
    line: Line<K, T>,
    /// Batches that are being looked at, whose items may come back.
    looking: usize,
    spares: Spares<S>,
    closed: bool,
}

/// What is done one by one, by a worker that would sleep otherwise.
struct Spares<S> {
    items: VecDeque<S>,
    /// One is being done.
    busy: bool,
    /// Items held, the one that is being done included.
    most: usize,
}

impl<S> Spares<S> {
    fn has_room(&self) -> bool {
        self.items.len() + usize::from(self.busy) < self.most
    }

    fn take(&mut self) -> Option<S> {
        let item = if self.busy { None } else { self.items.pop_front() }?;
        self.busy = true;
        Some(item)
    }

    /// Takes none any more, and gives out what there is.
    fn close(&mut self) -> VecDeque<S> {
        self.most = 0;
        std::mem::take(&mut self.items)
    }
}

/// What a worker gets.
pub(super) enum Next<'q, K: Kind, T: Waits, S> {
    Batch(Taken<'q, K, T, S>),
    Spare(Spare<'q, K, T, S>, S),
}

/// A batch that a worker has taken.
pub(super) struct Taken<'q, K: Kind, T: Waits, S> {
    queue: &'q Queue<K, T, S>,
    pub(super) batch: Batch<K, T>,
}

/// A worker's turn at what is done when nothing waits; nobody else has one until it is dropped.
pub(super) struct Spare<'q, K: Kind, T: Waits, S> {
    queue: &'q Queue<K, T, S>,
}

impl<K: Kind, T: Waits, S> Queue<K, T, S> {
    /// Holds at most `spares` items to be done when nothing waits.
    pub(super) fn new(spares: usize) -> Self {
        let spares = Spares { items: VecDeque::new(), busy: false, most: spares };
        Self {
            state: Mutex::new(State { line: Line::new(), looking: 0, spares, closed: false }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K, T, S>> {
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

    /// Waits for items and takes a batch, as [`Line::take`] does; where nothing waits and nothing is being looked at, a
    /// spare item. `None` once the queue is closed and nothing is left.
    pub(super) fn take(&self, most: usize, workers: usize) -> Option<Next<'_, K, T, S>> {
        let mut state = self.lock();
        let batch = loop {
            if let Some(batch) = state.line.take(most, workers, Instant::now()) {
                break batch;
            }
            if state.closed && state.looking == 0 {
                return None;
            }
            if state.looking == 0
                && let Some(item) = state.spares.take()
            {
                return Some(Next::Spare(Spare { queue: self }, item));
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
        Some(Next::Batch(Taken { queue: self, batch }))
    }

    /// Whether nothing waits, and nothing is being looked at.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.line.is_empty() && state.looking == 0
    }

    /// Forgets what would be done when nothing waits, and takes none of it any more.
    pub(super) fn close_spares(&self) {
        let gone = self.lock().spares.close();
        drop(gone); // outside the lock
    }

    /// Makes the next worker panic that takes something.
    #[cfg(test)]
    pub(super) fn corrupt(&self, kind: K) {
        self.lock().line.corrupt(kind);
        self.changed.notify_one();
    }

    /// Takes no more items; those that wait are still given out.
    pub(super) fn close(&self) {
        self.close_spares();
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

impl<K: Kind, T: Waits, S> Taken<'_, K, T, S> {
    /// Puts items that were looked at back in the line, each by its age, for this worker or another to run. A closed
    /// queue takes them too.
    pub(super) fn put_back(&self, items: impl IntoIterator<Item = (K, Place, T)>) {
        let mut state = self.queue.lock();
        items.into_iter().for_each(|(kind, place, item)| state.line.put_back(kind, place, item));
    }

    /// Leaves an item for when nothing waits. It wakes nobody: this worker asks for more itself.
    ///
    /// # Errors
    /// Gives the item back where there is no room for it.
    pub(super) fn spare(&self, item: S) -> Result<(), S> {
        let mut state = self.queue.lock();
        if !state.spares.has_room() {
            return Err(item);
        }
        state.spares.items.push_back(item);
        Ok(())
    }
}

impl<K: Kind, T: Waits, S> Spare<'_, K, T, S> {
    /// Leaves the rest of the item for when nothing waits again, before all others. A queue that takes none any more
    /// drops it.
    pub(super) fn put_back(self, item: S) {
        let mut state = self.queue.lock();
        let gone = if state.spares.most == 0 {
            Some(item)
        } else {
            state.spares.items.push_front(item);
            None
        };
        drop(state);
        drop(gone);
    }
}

impl<K: Kind, T: Waits, S> Drop for Spare<'_, K, T, S> {
    fn drop(&mut self) {
        self.queue.lock().spares.busy = false;
    }
}

impl<K: Kind, T: Waits, S> Drop for Taken<'_, K, T, S> {
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
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    use proptest::prelude::*;

    use super::*;
    use crate::scheduler::fair::FlowId;

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

        fn flow(&self) -> FlowId {
            FlowId(self.name as u64 % 3)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// With several producers and workers, every item is looked at and run once, whenever the queue closes. What is
        /// done when nothing waits is done one by one, in two parts, unless there is no room for it or the queue closes.
        #[test]
        fn nothing_is_lost_or_given_out_twice(
            items in prop::collection::vec(0u8..4, 0..200), workers in 1usize..5, most in 1usize..9, spares in 0usize..9,
        ) {
            let queue = Queue::new(spares);
            let (ran, spared, at_it) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()), AtomicBool::new(false));
            let refused = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..workers {
                    scope.spawn(|| {
                        while let Some(next) = queue.take(most, workers) {
                            let mut taken = match next {
                                Next::Batch(taken) => taken,
                                Next::Spare(turn, (name, parts)) => {
                                    assert!(!at_it.swap(true, Relaxed), "one at a time");
                                    spared.lock().unwrap().push(name);
                                    at_it.store(false, Relaxed);
                                    if parts > 1 {
                                        turn.put_back((name, parts - 1));
                                    }
                                    continue;
                                }
                            };
                            let (stage, path) = taken.batch.kind;
                            let items = std::mem::take(&mut taken.batch.items);
                            assert!(!items.is_empty() && items.len() <= most);
                            if stage == Stage::Look {
                                let decided = |(place, item): (Place, Item)| ((Stage::Run, item.path), place, item);
                                taken.put_back(items.into_iter().map(decided));
                            } else {
                                assert!(items.iter().all(|(_, item)| item.path == path));
                                for (_, item) in &items {
                                    refused.fetch_add(usize::from(taken.spare((item.name, 2)).is_err()), Relaxed);
                                }
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
            let mut times = vec![0; items.len()];
            spared.into_inner().unwrap().into_iter().for_each(|name: usize| times[name] += 1);
            prop_assert!(times.iter().all(|&times| times <= 2));
            prop_assert!(times.iter().filter(|&&times| times > 0).count() + refused.into_inner() <= items.len());
            let state = queue.lock();
            prop_assert!(state.spares.items.is_empty() && !state.spares.busy);
            drop(state);
            let late = queue.push((Stage::Run, 0), Item { name: 0, path: 0 });
            prop_assert!(late.is_err());
        }
    }
}
