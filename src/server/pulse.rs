//! Whether the threads that serve still come to new work: the admin listener has a thread of its own, and would not notice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Beats as long as the runtime that it is kept by takes tasks up.
#[derive(Debug)]
pub(super) struct Pulse(Mutex<Instant>);

/// Between beats.
const PERIOD: Duration = Duration::from_secs(1);

/// Beats that may be missing for no reason but much work.
const MISSING: u32 = 10;

impl Pulse {
    /// Kept by the current runtime, for as long as somebody holds it.
    pub(super) fn start() -> Arc<Self> {
        let pulse = Arc::new(Self(Mutex::new(Instant::now())));
        let kept = Arc::downgrade(&pulse);
        tokio::spawn(async move {
            while let Some(pulse) = kept.upgrade() {
                *pulse.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                drop(pulse);
                tokio::time::sleep(PERIOD).await;
            }
        });
        pulse
    }

    /// For how long it has been missing.
    pub(super) fn missing(&self) -> Duration {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.elapsed().saturating_sub(MISSING * PERIOD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_missing_once_its_runtime_stands_still() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let pulse = runtime.block_on(async { Pulse::start() });
        assert_eq!(pulse.missing(), Duration::ZERO);
        // Nobody runs its runtime any more.
        let before = Instant::now().checked_sub(MISSING * PERIOD + Duration::from_secs(3)).unwrap();
        *pulse.0.lock().unwrap() = before;
        assert!(pulse.missing() >= Duration::from_secs(3));
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        assert_eq!(pulse.missing(), Duration::ZERO, "it beats at once where it is taken up again");
    }
}
