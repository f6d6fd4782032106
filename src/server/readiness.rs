//! Whether the server takes work: starting, ready, or stopping.

use std::sync::atomic::{AtomicU8, Ordering};

/// Goes from starting to ready to stopping, never back.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

const READY: u8 = 1;
const STOPPING: u8 = 2;

impl Readiness {
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire) == READY
    }

    /// Every model is loaded and warm.
    pub fn ready(&self) {
        self.0.fetch_max(READY, Ordering::AcqRel);
    }

    /// The server was told to stop.
    pub fn stopping(&self) {
        self.0.fetch_max(STOPPING, Ordering::AcqRel);
    }

    /// For people: `starting`, `ready` or `stopping`.
    pub fn state(&self) -> &'static str {
        match self.0.load(Ordering::Acquire) {
            0 => "starting",
            READY => "ready",
            _ => "stopping",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopping_server_never_gets_ready_again() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready());
        readiness.ready();
        assert!(readiness.is_ready());
        readiness.stopping();
        readiness.ready();
        assert_eq!(readiness.state(), "stopping");
        assert!(!readiness.is_ready());
    }
}
