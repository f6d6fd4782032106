//! Whether the server takes work: starting, ready or without a model, stopping.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Goes from starting to ready to stopping, never back. A server that has no model is not ready meanwhile.
#[derive(Default)]
pub struct Readiness {
    /// Whether there is a model; set once the server is ready to take work.
    model: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
    stopping: AtomicBool,
}

impl Readiness {
    pub fn is_ready(&self) -> bool {
        self.state() == READY
    }

    /// The listeners take requests. Whether a model is loaded and warm is asked of `model` from now on, each time.
    pub fn ready(&self, model: impl Fn() -> bool + Send + Sync + 'static) {
        self.model.get_or_init(|| Box::new(model));
    }

    /// The server was told to stop.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// `starting`, `ready`, `no_model` or `stopping`.
    pub fn state(&self) -> &'static str {
        if self.stopping.load(Ordering::Acquire) {
            return "stopping";
        }
        match self.model.get() {
            None => "starting",
            Some(model) if model() => READY,
            Some(_) => "no_model",
        }
    }
}

const READY: &str = "ready";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_server_is_ready_while_it_has_a_model() {
        let (readiness, model) = (Readiness::default(), Arc::new(AtomicBool::new(true)));
        assert_eq!((readiness.is_ready(), readiness.state()), (false, "starting"));
        let has = Arc::clone(&model);
        readiness.ready(move || has.load(Ordering::Relaxed));
        assert_eq!((readiness.is_ready(), readiness.state()), (true, "ready"));
        model.store(false, Ordering::Relaxed);
        assert_eq!((readiness.is_ready(), readiness.state()), (false, "no_model"));
        model.store(true, Ordering::Relaxed);
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_stopping_server_never_gets_ready_again() {
        let readiness = Readiness::default();
        readiness.ready(|| true);
        readiness.stopping();
        readiness.ready(|| true);
        assert_eq!((readiness.is_ready(), readiness.state()), (false, "stopping"));
    }
}
