//! What the policy decides alone, and what brownout decides in its place.

use prometheus::core::Collector;
use prometheus::{Gauge, IntCounter, IntCounterVec, Opts};

use crate::policy::Mask;

/// The series of all models.
pub(super) struct Decisions {
    images: IntCounterVec,
    kept: IntCounterVec,
    dropped: IntCounterVec,
    brownout: IntCounterVec,
    /// How far brownout raises the keep thresholds.
    pub(super) level: Gauge,
}

/// The series of one model.
pub(super) struct Decided {
    images: IntCounter,
    kept: IntCounter,
    dropped: IntCounter,
    brownout: IntCounter,
}

impl Decisions {
    /// The series, each given to `put`.
    pub(super) fn new(put: impl Fn(Box<dyn Collector>)) -> Self {
        let counters = |name: &str, help: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &["model"]).expect("a valid name");
            put(Box::new(counters.clone()));
            counters
        };
        let level = Gauge::new(
            "blockdrop_brownout_level",
            "How far the keep thresholds are raised towards --brownout: 0 not at all, 1 all the way.",
        );
        let level = level.expect("a valid name");
        put(Box::new(level.clone()));
        Self {
            images: counters(
                "blockdrop_policy_images_total",
                "Images that the policy chose a path for by the model's own threshold: no path, threshold or budget asked for, no brownout.",
            ),
            kept: counters(
                "blockdrop_policy_blocks_kept_total",
                "Blocks kept, of the images of blockdrop_policy_images_total.",
            ),
            dropped: counters(
                "blockdrop_policy_blocks_dropped_total",
                "Blocks dropped, of the images of blockdrop_policy_images_total.",
            ),
            brownout: counters(
                "blockdrop_brownout_images_total",
                "Images that the policy chose a path for by a threshold that brownout had raised (--brownout).",
            ),
            level,
        }
    }

    /// The series of the model called `name`.
    pub(super) fn model(&self, name: &str) -> Decided {
        let of = |counters: &IntCounterVec| counters.with_label_values(&[name]);
        Decided {
            images: of(&self.images),
            kept: of(&self.kept),
            dropped: of(&self.dropped),
            brownout: of(&self.brownout),
        }
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

    /// Counts an image for which brownout raised the threshold.
    pub(super) fn brownout(&self) {
        self.brownout.inc();
    }
}
