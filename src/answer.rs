//! What is told about an image: its classes, the path it took, its FLOPs.

use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{Answer, Engine};
use crate::policy::Selection;

/// An image's classes, path and FLOPs, as every interface shows them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Described {
    pub predictions: Vec<Prediction>,
    pub path: PathTaken,
    pub flops: Flops,
}

/// A class and how probable it is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Prediction {
    pub label: String,
    pub class: usize,
    pub probability: f32,
}

/// Which blocks ran.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PathTaken {
    /// `learned`, `full`, `mask`, `first_k`, `random_k` or `distribute_k`.
    pub policy: &'static str,
    /// A 1 for each block kept, a 0 for each dropped, in running order.
    pub mask: String,
    pub blocks_kept: usize,
    pub blocks_total: usize,
    /// The keep threshold, where brownout raised it above the model's own; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brownout_threshold: Option<f64>,
}

/// FLOPs by the paper's convention: two per multiply-accumulate.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Flops {
    /// The policy network; 0 where it did not look at the image.
    pub policy: u64,
    /// Stem, kept blocks, shortcuts of dropped ones, head.
    pub executed: u64,
    /// The full net as one graph, stem and head included.
    pub full: u64,
    /// `(policy + executed) / full`
    pub ratio: f64,
}

/// Describes `answer`, which `engine` gave for `selection`, with its `top_k` classes.
pub fn describe(engine: &Engine, selection: &Selection, answer: &Answer, top_k: usize) -> Described {
    let costs = engine.costs();
    let (executed, full) = (costs.executed(&answer.mask), costs.full());
    let spent = costs.spent(&answer.mask, answer.policy_ran);
    Described {
        predictions: predictions(&answer.logits, &engine.bundle().labels, top_k),
        path: PathTaken {
            policy: selection.path().name(),
            mask: answer.mask.to_string(),
            blocks_kept: answer.mask.kept(),
            blocks_total: answer.mask.len(),
            brownout_threshold: answer.brownout,
        },
        flops: Flops { policy: spent - executed, executed, full, ratio: spent as f64 / full as f64 },
    }
}

/// The `top_k` most probable classes (all, where there are fewer), by softmax over the logits.
pub fn predictions(logits: &[f32], labels: &[String], top_k: usize) -> Vec<Prediction> {
    let probabilities = softmax(logits);
    let prediction =
        |class: usize| Prediction { label: labels[class].clone(), class, probability: probabilities[class] };
    ranked(logits).into_iter().take(top_k).map(prediction).collect()
}

/// Probabilities of all classes.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let total: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// All classes, the most probable first; of equally probable ones the first.
pub fn ranked(logits: &[f32]) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..logits.len()).collect();
    classes.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_the_softmax_in_falling_order() {
        let labels: Vec<String> = ["a", "b", "c"].map(String::from).into();
        let found = predictions(&[0.0, 2.0f32.ln(), 0.0], &labels, 2);
        let found: Vec<(&str, usize, f32)> =
            found.iter().map(|p| (p.label.as_str(), p.class, (p.probability * 1e4).round() / 1e4)).collect();
        assert_eq!(found, [("b", 1, 0.5), ("a", 0, 0.25)]);
        assert_eq!(predictions(&[900.0, -900.0, 0.0], &labels, 9).len(), 3);
    }
}
