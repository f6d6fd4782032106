//! What the policy decides alone.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, Opts};

use crate::policy::Mask;

/// The series of all models.
pub(super) struct Decisions {
    images: IntCounterVec,
    kept: IntCounterVec,
    dropped: IntCounterVec,
}

/// The series of one model.
pub(super) struct Decided {
    images: IntCounter,
    kept: IntCounter,
    dropped: IntCounter,
}

impl Decisions {
    /// The series, each given to `put`.
    pub(super) fn new(put: impl Fn(Box<dyn Collector>)) -> Self {
        let counters = |name: &str, help: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &["model"]).expect("a valid name");
            put(Box::new(counters.clone()));
            counters
        };
        Self {
            images: counters(
                "blockdrop_policy_images_total",
                "Images that the policy chose a path for by the model's own threshold: no path, threshold or budget asked for.",
            ),
            kept: counters(
                "blockdrop_policy_blocks_kept_total",
                "Blocks kept, of the images of blockdrop_policy_images_total.",
            ),
            dropped: counters(
                "blockdrop_policy_blocks_dropped_total",
                "Blocks dropped, of the images of blockdrop_policy_images_total.",
            ),
        }
    }

    /// The series of the model called `name`.
    pub(super) fn model(&self, name: &str) -> Decided {
        let of = |counters: &IntCounterVec| counters.with_label_values(&[name]);
        Decided { images: of(&self.images), kept: of(&self.kept), dropped: of(&self.dropped) }
    }
}

impl Decided {
    /// Counts an image whose path is the policy's own decision.
    pub(super) fn own(&self, mask: &Mask) {
        let kept = mask.kept();
        self.images.inc();
        self.kept.inc_by(kept as u64);
        self.dropped.inc_by((mask.len() - kept) as u64);
    }
}
