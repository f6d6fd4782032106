//! A queue that workers take batches from: oldest first, one kind of item a batch.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// First in, first out. How many may wait is bounded by [`Admission`](super::Admission), not here.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { waiting: VecDeque::new(), closed: false }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item at the end.
    ///
    /// # Errors
    /// Gives the item back when the queue is closed.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.closed {
            return Err(item);
        }
        state.waiting.push_back(item);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for an item and takes it with those behind it that are `alike`, in order: at most `most`, and at most the
    /// `workers`-th part of what waits, so that the other workers get their share. `None` once the queue is closed and
    /// empty.
    pub(super) fn take(&self, most: usize, workers: usize, alike: impl Fn(&T, &T) -> bool) -> Option<Vec<T>> {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let share = most.min(state.waiting.len().div_ceil(workers)).max(1);
        let mut batch: Vec<T> = Vec::with_capacity(share);
        let mut at = 0;
        while batch.len() < share && at < state.waiting.len() {
            if batch.first().is_none_or(|first| alike(first, &state.waiting[at])) {
                batch.extend(state.waiting.remove(at));
            } else {
                at += 1;
            }
        }
        let more = !state.waiting.is_empty();
        drop(state);
        if more {
            self.changed.notify_one();
        }
        Some(batch)
    }

    /// Takes no more items; those that wait are still given out.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(items: &[u32]) -> Queue<u32> {
        let queue = Queue::new();
        items.iter().for_each(|&item| queue.push(item).unwrap());
        queue
    }

    #[test]
    fn a_batch_holds_what_is_alike_in_order_and_starts_with_the_oldest() {
        let queue = filled(&[10, 21, 12, 23, 14]);
        let tens = |a: &u32, b: &u32| a / 10 == b / 10;
        assert_eq!(queue.take(8, 1, tens), Some(vec![10, 12, 14]));
        assert_eq!(queue.take(8, 1, tens), Some(vec![21, 23]));
    }

    #[test]
    fn a_batch_leaves_the_other_workers_their_share() {
        let queue = filled(&[1, 2, 3, 4, 5]);
        assert_eq!(queue.take(8, 2, |_, _| true), Some(vec![1, 2, 3]));
        assert_eq!(queue.take(8, 2, |_, _| true), Some(vec![4]));
        assert_eq!(queue.take(8, 2, |_, _| true), Some(vec![5]));
        assert_eq!(filled(&[1, 2, 3]).take(2, 1, |_, _| true), Some(vec![1, 2]));
    }

    #[test]
    fn a_closed_queue_gives_out_what_waits_and_then_ends() {
        let queue = filled(&[1]);
        queue.close();
        assert_eq!(queue.push(2), Err(2));
        assert_eq!(queue.take(8, 1, |_, _| true), Some(vec![1]));
        assert_eq!(queue.take(8, 1, |_, _| true), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// With several producers and workers, every item comes out once, whenever the queue closes.
        #[test]
        fn nothing_is_lost_or_given_out_twice(
            items in prop::collection::vec(0u32..4, 0..200), workers in 1usize..5, most in 1usize..9,
        ) {
            let queue = Queue::new();
            let taken = Mutex::new(Vec::new());
            std::thread::scope(|scope| {
                for _ in 0..workers {
                    scope.spawn(|| {
                        while let Some(batch) = queue.take(most, workers, |a: &(usize, u32), b| a.1 == b.1) {
                            assert!(!batch.is_empty() && batch.len() <= most);
                            assert!(batch.iter().all(|item| item.1 == batch[0].1));
                            taken.lock().unwrap().extend(batch);
                        }
                    });
                }
                let (left, right) = items.split_at(items.len() / 2);
                let producers = [(0, left), (left.len(), right)].map(|(from, part)| {
                    let queue = &queue;
                    scope.spawn(move || {
                        part.iter().enumerate().for_each(|(at, &kind)| queue.push((from + at, kind)).unwrap());
                    })
                });
                producers.into_iter().for_each(|producer| producer.join().unwrap());
                queue.close();
            });
            let mut taken = taken.into_inner().unwrap();
            taken.sort_unstable();
            let expected: Vec<(usize, u32)> = items.into_iter().enumerate().collect();
            prop_assert_eq!(taken, expected);
        }
    }
}
