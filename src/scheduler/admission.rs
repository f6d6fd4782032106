//! Who may wait: a bounded number of images, refused at once beyond it.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Why an image is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As many images wait as may.
    Full,
    /// The server is stopping and takes no new requests.
    Stopping,
}

/// Counts the images that are admitted and whose path does not run yet.
pub struct Admission {
    room: Arc<Semaphore>,
    capacity: usize,
    stopping: watch::Sender<bool>,
    depth: IntGauge,
}

/// A waiting image's place; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    _place: OwnedSemaphorePermit,
    /// Its model's part, where that has a bound of its own.
    _share: Option<OwnedSemaphorePermit>,
    depth: IntGauge,
}

impl Slot {
    /// The same place, with its model's part.
    pub fn with(mut self, share: Option<OwnedSemaphorePermit>) -> Self {
        self._share = share;
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.depth.dec();
    }
}

impl Admission {
    /// Room for `capacity` images; `depth` shows how many wait.
    pub fn new(capacity: usize, depth: IntGauge) -> Self {
        Self { room: Arc::new(Semaphore::new(capacity)), capacity, stopping: watch::Sender::new(false), depth }
    }

    /// How many images may wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether a new request may come in: asked before its body is read. It takes no place yet, so that a body that
    /// arrives slowly keeps nobody else out.
    ///
    /// # Errors
    /// The queue is full, or the server is stopping.
    pub fn check(&self) -> Result<(), Refused> {
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        if self.room.available_permits() == 0 { Err(Refused::Full) } else { Ok(()) }
    }

    /// Places for the `count` images of a request that [`check`](Self::check) let in: all or none. A server that is
    /// stopping still gives them.
    ///
    /// # Errors
    /// There is not room for all of them.
    pub fn places(&self, count: usize) -> Result<Vec<Slot>, Refused> {
        let wanted = u32::try_from(count).map_err(|_| Refused::Full)?;
        let mut all = Arc::clone(&self.room).try_acquire_many_owned(wanted).map_err(|_| Refused::Full)?;
        let slots = std::iter::from_fn(|| {
            let place = all.split(1)?;
            self.depth.inc();
            Some(Slot { _place: place, _share: None, depth: self.depth.clone() })
        });
        Ok(slots.collect())
    }

    /// Whether new requests are refused because the server is stopping.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Refuses new requests from now on.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until new requests are refused.
    pub async fn stopped(&self) {
        drop(self.stopping.subscribe().wait_for(|stopping| *stopping).await); // the sender is here
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(capacity: usize) -> Admission {
        Admission::new(capacity, IntGauge::new("depth", "depth").unwrap())
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let admission = admission(3);
        let first = admission.places(1).unwrap();
        assert_eq!(admission.places(3).unwrap_err(), Refused::Full);
        assert_eq!(admission.depth.get(), 1, "a refused request leaves nothing behind");
        admission.check().unwrap();
        let rest = admission.places(2).unwrap();
        assert_eq!(admission.check(), Err(Refused::Full));
        assert_eq!(admission.depth.get(), 3);
        drop((first, rest));
        assert_eq!(admission.depth.get(), 0);
        admission.check().unwrap();
    }

    #[test]
    fn a_stopping_server_lets_nobody_in_but_serves_who_is() {
        let admission = admission(3);
        admission.check().unwrap();
        admission.stop();
        assert_eq!(admission.check(), Err(Refused::Stopping));
        assert_eq!(admission.places(2).unwrap().len(), 2);
    }
}
