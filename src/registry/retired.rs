//! Taking models apart that serve no more.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Model;

/// Models that new requests do not get any more.
#[derive(Default)]
pub(super) struct Retired(Mutex<Vec<JoinHandle<()>>>);

impl Retired {
    /// Takes each of `models` apart on a thread of its own, once the requests that have it are answered, or `give_up`
    /// says that the process ends.
    pub(super) fn take(&self, mut models: Vec<Arc<Model>>, give_up: impl Fn() -> bool + Send + 'static) {
        const PAUSE: Duration = Duration::from_millis(10);
        if models.is_empty() {
            return;
        }
        let retire = move || {
            while !models.is_empty() && !give_up() {
                let mut left = Vec::new();
                for model in models.drain(..) {
                    match Arc::try_unwrap(model) {
                        Ok(Model { name, version, engine, .. }) => {
                            engine.end();
                            tracing::debug!(model = name, version, "a model's memory was given back");
                        }
                        Err(model) => left.push(model),
                    }
                }
                models = left;
                if !models.is_empty() {
                    std::thread::sleep(PAUSE);
                }
            }
        };
        // Without a thread they go with their last request.
        if let Ok(thread) = std::thread::Builder::new().name("retired".to_owned()).spawn(retire) {
            let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            threads.retain(|thread| !thread.is_finished());
            threads.push(thread);
        }
    }

    pub(super) fn threads(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
