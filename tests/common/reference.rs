//! The engine in this process: what the server's answers have to be.

use std::path::Path;
use std::sync::Arc;

use blockdrop::bundle::Bundle;
use blockdrop::engine::{Answer, Engine, Image, PathMetrics, Paths, Provider};
use blockdrop::image::{decode, preprocess};
use blockdrop::policy::{Choice, Costs, Mask, Path as Chosen, Selection};
use blockdrop_testkit::runtime;
use serde_json::Value;

/// How far probabilities may lie apart.
const TOLERANCE: f64 = 1e-4;

pub(crate) struct Reference {
    engine: Engine,
}

impl Reference {
    /// The bundle in `dir`.
    pub(crate) fn load(dir: &Path) -> Self {
        let bundle = Bundle::load(dir).expect("a made-up bundle loads");
        let paths = Arc::new(Paths::start(0).expect("a thread"));
        let engine = Engine::new(Arc::new(bundle), runtime(), Provider::Cpu, 1, paths, PathMetrics::default());
        Self { engine: engine.expect("an engine") }
    }

    pub(crate) fn costs(&self) -> &Costs {
        self.engine.costs()
    }

    pub(crate) fn blocks(&self) -> usize {
        self.costs().blocks.len()
    }

    /// What a `path` alone chooses.
    pub(crate) fn selection(&self, path: &str) -> Selection {
        self.select(Choice { path: path.parse().expect("a path"), ..Choice::default() })
    }

    pub(crate) fn select(&self, choice: Choice) -> Selection {
        let threshold = self.engine.bundle().manifest.policy.threshold;
        choice.check(self.costs(), threshold).expect("a choice that fits")
    }

    /// The answer for a file at position `index` of its request.
    pub(crate) fn answer(&self, file: &[u8], selection: &Selection, index: u64) -> Answer {
        self.answer_image(&decode(file, 1 << 24).expect("a whole image"), selection, index)
    }

    pub(crate) fn answer_image(&self, image: &image::RgbImage, selection: &Selection, index: u64) -> Answer {
        let pixels = preprocess(image, &self.engine.bundle().manifest.input);
        self.engine.classify(&[Image { pixels: &pixels, selection, index }]).swap_remove(0).expect("an answer")
    }

    /// The mask that the policy decides for a file.
    pub(crate) fn learned(&self, file: &[u8]) -> Mask {
        self.answer(file, &self.selection("policy"), 0).mask
    }

    /// Checks a result of the server against the engine's.
    pub(crate) fn check(&self, result: &Value, file: &[u8], selection: &Selection, index: u64) {
        self.check_described(result, file, selection, index);
        for stage in ["decode", "preprocess", "queue", "policy", "backbone", "total"] {
            let time = result["timing_ms"][stage].as_f64();
            assert!(time.is_some_and(|time| time >= 0.0), "time of {stage}: {result}");
        }
    }

    /// Checks what is told about an image: classes, probabilities, mask, and the FLOPs of this mask.
    pub(crate) fn check_described(&self, result: &Value, file: &[u8], selection: &Selection, index: u64) {
        let expected = self.answer(file, selection, index);
        self.check_predictions(&result["predictions"], &expected.logits);
        let costs = self.costs();
        let (mask, full) = (&expected.mask, costs.full());
        let name = match selection.path() {
            Chosen::Learned => "learned",
            Chosen::Full => "full",
            Chosen::Fixed(_) => "mask",
            Chosen::FirstK(_) => "first_k",
            Chosen::RandomK { .. } => "random_k",
            Chosen::DistributeK(_) => "distribute_k",
        };
        assert_eq!(result["path"]["policy"], name, "{result}");
        assert_eq!(result["path"]["mask"], mask.to_string(), "{result}");
        assert_eq!(result["path"]["blocks_total"], self.blocks(), "{result}");
        let ones = result["path"]["mask"].as_str().expect("a mask").matches('1').count();
        assert_eq!(result["path"]["blocks_kept"], ones, "{result}");

        let flops = |name: &str| result["flops"][name].as_u64().unwrap_or_else(|| panic!("FLOPs {name}: {result}"));
        let policy = if name == "learned" { costs.policy } else { 0 };
        assert_eq!(flops("policy"), policy, "{result}");
        let blocks = costs.blocks.iter().zip(mask.iter());
        let blocks: u64 = blocks.map(|(block, keep)| if keep { block.kept } else { block.dropped }).sum();
        assert_eq!(flops("executed"), costs.stem + blocks + costs.head, "{result}");
        assert_eq!(flops("full"), full, "{result}");
        let ratio = result["flops"]["ratio"].as_f64().expect("a ratio");
        // Reading a number as JSON may lose its last bit.
        let apart = (ratio - (flops("policy") + flops("executed")) as f64 / full as f64).abs();
        assert!(apart < 1e-12, "{result}");
    }

    /// Checks predictions against the softmax of `logits`, in falling order, as many as there are.
    pub(crate) fn check_predictions(&self, predictions: &Value, logits: &[f32]) {
        let predictions = predictions.as_array().expect("a list of predictions");
        assert!(!predictions.is_empty());
        let largest = logits.iter().fold(f64::MIN, |largest, &logit| largest.max(f64::from(logit)));
        let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        for (prediction, &class) in predictions.iter().zip(&order) {
            let probability = prediction["probability"].as_f64().expect("a probability");
            let apart = (probability - weights[class] / total).abs();
            assert!(apart <= TOLERANCE, "{prediction} is {apart} off");
            assert_eq!(prediction["class"], class, "{predictions:?}, expected {weights:?}");
            assert_eq!(prediction["label"], self.engine.bundle().labels[class]);
        }
    }
}
