//! How many rows each block gets in batches of mixed masks whose shapes are to be those of the batches before.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sizes::rounded;

/// Rooms of a model, by the size of batches. All sessions that run batches of one size have the same.
pub(super) struct Rooms {
    blocks: usize,
    steady: Mutex<HashMap<usize, Steady>>,
}

/// The room of each block, by the size of batches; nothing where none has run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Room(HashMap<usize, Vec<usize>>);

impl Room {
    /// Rows of a block in a batch of that size, at least.
    pub(super) fn rows(&self, size: usize, block: usize) -> usize {
        self.0.get(&size).map_or(0, |rows| rows[block])
    }
}

struct Steady {
    /// Rows of each block, and the most that it needed in the last batches.
    room: Vec<usize>,
    needed: Vec<usize>,
    batches: u32,
}

/// Batches after which a block gets less room, where it needed less in all of them.
const PERIOD: u32 = 100;

impl Rooms {
    /// For a net of so many `blocks`.
    pub(super) fn new(blocks: usize) -> Self {
        Self { blocks, steady: Mutex::default() }
    }

    /// The rows that each block gets in a batch of `size` images of which it needs `rows`.
    pub(super) fn fit(&self, size: usize, rows: &[usize]) -> Vec<usize> {
        let mut steady = self.lock();
        let steady = steady.entry(size).or_insert_with(|| Steady::new(self.blocks));
        steady.count(rows.iter().map(|&rows| rounded(size, rows)));
        steady.room.iter_mut().zip(&steady.needed).for_each(|(room, needed)| *room = (*room).max(*needed));
        steady.room.clone()
    }

    /// Counts a batch that was not run, maybe for all the room that it would have been given: so that rooms which are too
    /// large for what comes do not stay so. None grows.
    pub(super) fn pass(&self, size: usize, rows: &[usize]) {
        if let Some(steady) = self.lock().get_mut(&size) {
            let room = steady.room.clone();
            steady.count(rows.iter().zip(room).map(|(&rows, room)| rounded(size, rows).min(room)));
        }
    }

    /// What batches get now.
    pub(super) fn now(&self) -> Room {
        Room(self.lock().iter().map(|(&size, steady)| (size, steady.room.clone())).collect())
    }

    /// Forgets what blocks needed in batches that were no traffic.
    pub(super) fn begin_anew(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Steady>> {
        self.steady.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steady {
    fn new(blocks: usize) -> Self {
        Self { room: vec![0; blocks], needed: vec![0; blocks], batches: 0 }
    }

    /// One more batch, which needs these rows.
    fn count(&mut self, rows: impl Iterator<Item = usize> + Clone) {
        self.needed.iter_mut().zip(rows.clone()).for_each(|(needed, rows)| *needed = rows.max(*needed));
        self.batches += 1;
        if self.batches == PERIOD {
            self.room.clone_from(&self.needed);
            self.batches = 0;
            self.needed.iter_mut().zip(rows).for_each(|(needed, rows)| *needed = rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_stay_until_a_block_needs_more_rows_or_has_needed_less_for_long() {
        let rooms = Rooms::new(3);
        assert_eq!(rooms.fit(8, &[1, 0, 2]), [1, 0, 2]);
        assert_eq!(rooms.fit(8, &[0, 0, 1]), [1, 0, 2]);
        assert_eq!(rooms.fit(8, &[1, 2, 0]), [1, 2, 2]);
        assert_eq!(rooms.fit(16, &[1, 2, 0]), [2, 2, 0], "another size has rooms of its own");
        for _ in 0..2 * PERIOD {
            rooms.fit(8, &[0, 0, 1]);
        }
        assert_eq!(rooms.fit(8, &[0, 0, 1]), [0, 0, 1]);
        rooms.begin_anew();
        assert_eq!(rooms.now(), Room::default());
    }

    #[test]
    fn rooms_are_eighths_of_the_size() {
        let rooms = Rooms::new(1);
        assert_eq!(rooms.fit(32, &[9]), [12]);
        assert_eq!(rooms.fit(32, &[32]), [32]);
    }

    #[test]
    fn rooms_that_keep_batches_from_running_shrink_too() {
        let rooms = Rooms::new(2);
        rooms.pass(8, &[8, 8]);
        assert_eq!(rooms.now().rows(8, 0), 0, "what never ran takes no room");
        rooms.fit(8, &[8, 4]);
        rooms.pass(8, &[8, 8]);
        assert_eq!(rooms.fit(8, &[0, 0]), [8, 4], "nor does it make room");
        for _ in 0..2 * PERIOD {
            rooms.pass(8, &[1, 0]);
        }
        assert_eq!([0, 1].map(|block| rooms.now().rows(8, block)), [1, 0]);
    }
}
