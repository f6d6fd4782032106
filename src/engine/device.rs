//! A GPU as the threads of the process share it.
//!
//! ONNX Runtime captures a CUDA graph for the whole process: what any other thread asks of CUDA meanwhile, memory above all,
//! fails or spoils the graph. So whoever captures has the device alone, and everything else that uses it, makes a session or
//! takes one apart shares it.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::ThreadId;

static DEVICES: RwLock<()> = RwLock::new(());

/// How a model's sessions use the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Nobody captures anything.
    Free,
    /// There are CUDA graphs.
    Graphs,
}

/// Held while the device is used.
pub(super) enum Use {
    Free,
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

impl Sharing {
    /// Waits until nobody captures.
    pub(super) fn shared(self) -> Use {
        match self {
            Self::Free => Use::Free,
            Self::Graphs => Use::Shared(DEVICES.read().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Waits until nobody uses the device.
    fn alone(self) -> Use {
        match self {
            Self::Free => Use::Free,
            Self::Graphs => Use::Alone(DEVICES.write().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

/// The runs of a session's threads in which its graph is captured: ONNX Runtime keeps one for each thread that runs it, and
/// captures it in that thread's first runs, after two at most that find out what memory it needs.
#[derive(Debug, Default)]
pub(super) struct Captured(HashMap<ThreadId, u8>);

impl Captured {
    /// What this thread's next run needs.
    pub(super) fn next(&mut self, sharing: Sharing) -> Use {
        const RUNS: u8 = 3;
        let runs = self.0.entry(std::thread::current().id()).or_default();
        if *runs == RUNS {
            return sharing.shared();
        }
        *runs += 1;
        sharing.alone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn whoever_captures_has_the_device_alone() {
        let (mut captured, capturing) = (Captured::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let using = Sharing::Graphs.shared();
            let capture = scope.spawn(|| {
                for _ in 0..3 {
                    assert!(matches!(captured.next(Sharing::Graphs), Use::Alone(_)));
                    capturing.store(true, Ordering::SeqCst);
                }
                assert!(matches!(captured.next(Sharing::Graphs), Use::Shared(_)), "it is this thread's now");
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!capturing.load(Ordering::SeqCst), "another one uses the device");
            drop(using);
            capture.join().expect("no panic");
        });
        assert!(matches!(captured.next(Sharing::Graphs), Use::Alone(_)), "another thread has its own graph");
        assert!(matches!(Captured::default().next(Sharing::Free), Use::Free));
    }
}
