//! Sessions that no thread uses at the moment, by the number of images that they run at a time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// What is made when a thread finds none idle, and kept for the next.
pub(super) struct Pool<T> {
    idle: Mutex<HashMap<Option<usize>, Vec<T>>>,
}

impl<T> Pool<T> {
    pub(super) fn new() -> Self {
        Self { idle: Mutex::default() }
    }

    /// Lends one for `size` to `run`, made by `make` where none is idle. One that is lost to a panic does not come back.
    ///
    /// # Errors
    /// As of `make` and `run`.
    pub(super) fn lend<R, E>(
        &self,
        size: Option<usize>,
        make: impl FnOnce() -> Result<T, E>,
        run: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().get_mut(&size).and_then(Vec::pop);
        let mut lent = taken.map_or_else(make, Ok)?;
        let result = run(&mut lent);
        idle().entry(size).or_default().push(lent);
        result
    }

    /// Makes as many more for `size` as are missing of `count` that are idle.
    ///
    /// # Errors
    /// As of `make`.
    pub(super) fn fill<E>(&self, size: Option<usize>, count: usize, make: impl Fn() -> Result<T, E>) -> Result<(), E> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).get(&size).map_or(0, Vec::len);
        let made = (idle..count).map(|_| make()).collect::<Result<_, _>>()?;
        self.put(size, made);
        Ok(())
    }

    pub(super) fn put(&self, size: Option<usize>, all: Vec<T>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).entry(size).or_default().extend(all);
    }

    /// Takes all that are idle apart.
    pub(super) fn clear(&self) {
        let gone = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        drop(gone); // outside the lock
    }
}
