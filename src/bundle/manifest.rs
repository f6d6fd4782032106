//! `bundle.json`: what a model is, and the files that it is made of.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::error::BundleError;

/// The schema of `bundle.json` that this build reads.
pub const SCHEMA_VERSION: u32 = 1;

/// The opsets whose operators this build can compute shapes and FLOPs for.
pub const OPSETS: std::ops::RangeInclusive<i64> = 13..=24;

/// The content of `bundle.json`. Name and version are not in it: they are the directory's,
/// `models/<name>/<version>/`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub schema_version: u32,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    pub architecture: Architecture,
    /// The ONNX opset that every graph of the bundle imports.
    pub opset: i64,
    /// Number of classes, C.
    pub classes: usize,
    /// One label a line, C lines.
    pub labels: FileRef,
    pub input: InputSpec,
    pub policy: PolicyRef,
    pub stem: FileRef,
    /// The residual blocks in running order, by segment.
    pub segments: Vec<SegmentRef>,
    pub head: FileRef,
    /// What the exporter counted; the server counts again and refuses a difference.
    pub flops: StatedFlops,
    /// How the weights came to be: configuration, seed, commit, data.
    #[serde(default)]
    pub provenance: serde_json::Value,
    /// Accuracy, blocks kept and FLOPs on validation and test images.
    #[serde(default)]
    pub measured: serde_json::Value,
}

/// Names for people; nothing is derived from them.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    pub backbone: String,
    pub policy: String,
    pub dataset: String,
}

/// A file of the bundle, relative to its directory, and the SHA-256 of its bytes in hexadecimal.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    pub file: String,
    pub sha256: String,
}

/// The policy network and the probability from which it keeps a block.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRef {
    pub file: String,
    pub sha256: String,
    /// Keep block k when `sigmoid(logit_k) >= threshold`; 0.5 in the paper.
    pub threshold: f64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentRef {
    pub blocks: Vec<BlockRef>,
}

/// A kept block, and what runs in its place when it is dropped.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BlockRef {
    pub file: String,
    pub sha256: String,
    /// The shortcut of a dropped block; none where it is the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortcut: Option<FileRef>,
}

/// How an image becomes the tensor `[3, height, width]`: RGB in \[0, 1\], then `(x - mean) / std`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub resize: Resize,
}

/// Short side to `short_side` pixels, then the centre `height` x `width`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    pub short_side: usize,
    pub filter: Filter,
}

/// The resampling kernel, widened when shrinking (antialiased).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    Nearest,
    Bilinear,
    Bicubic,
    Lanczos,
}

/// FLOPs of one image by the paper's convention: two operations per multiply-accumulate, convolutions
/// and linear layers only.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StatedFlops {
    pub policy: u64,
    /// Stem, all blocks and head, without the policy.
    pub full: u64,
}

impl Manifest {
    /// Parses and checks everything that can be checked without opening another file.
    pub(super) fn parse(file: &Path, bytes: &[u8]) -> Result<Self, BundleError> {
        // The version is read by itself first, so that a newer schema is named as such and not by its first new field.
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: u32,
        }
        let as_manifest = |reason| BundleError::Manifest { file: file.to_path_buf(), reason };
        let versioned: Versioned = serde_json::from_slice(bytes).map_err(as_manifest)?;
        if versioned.schema_version != SCHEMA_VERSION {
            return Err(BundleError::mismatch(file, "schema_version", versioned.schema_version, SCHEMA_VERSION));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(as_manifest)?;
        manifest.check(file)?;
        Ok(manifest)
    }

    /// Number of residual blocks, K.
    pub fn blocks(&self) -> usize {
        self.segments.iter().map(|segment| segment.blocks.len()).sum()
    }

    fn check(&self, file: &Path) -> Result<(), BundleError> {
        let wrong = |what: &str, found: &dyn std::fmt::Display, expected: &str| {
            Err(BundleError::mismatch(file, what, found, expected))
        };
        if !OPSETS.contains(&self.opset) {
            return wrong("opset", &self.opset, &format!("{} to {}", OPSETS.start(), OPSETS.end()));
        }
        if self.classes == 0 {
            return wrong("classes", &self.classes, "at least 1");
        }
        let threshold = self.policy.threshold;
        if !(0.0..=1.0).contains(&threshold) {
            return wrong("policy.threshold", &threshold, "a probability from 0 to 1");
        }
        if self.segments.is_empty() || self.segments.iter().any(|segment| segment.blocks.is_empty()) {
            return wrong("segments", &"an empty list", "at least one segment, each with at least one block");
        }
        let input = &self.input;
        if input.channels != 3 {
            return wrong("input.channels", &input.channels, "3 (RGB)");
        }
        const LARGEST: usize = 4096;
        for (what, side) in [("input.height", input.height), ("input.width", input.width)] {
            if side == 0 || side > LARGEST {
                return wrong(what, &side, "1 to 4096 pixels");
            }
        }
        let short = input.resize.short_side;
        if short < input.height.max(input.width) || short > LARGEST {
            return wrong("input.resize.short_side", &short, "at least height and width, at most 4096 pixels");
        }
        for channel in 0..3 {
            let (mean, std) = (input.mean[channel], input.std[channel]);
            if !mean.is_finite() {
                return wrong("input.mean", &mean, "a finite number");
            }
            if !std.is_finite() || std <= 0.0 {
                return wrong("input.std", &std, "a finite number above 0");
            }
        }
        for (name, sha256) in self.files() {
            let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            if name.is_empty() || !inside {
                return wrong("file", &format!("'{name}'"), "a path inside the bundle's directory");
            }
            if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return wrong(&format!("sha256 of {name}"), &format!("'{sha256}'"), "64 hexadecimal digits");
            }
        }
        Ok(())
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        let single = [&self.labels, &self.stem, &self.head].map(|file| (file.file.as_str(), file.sha256.as_str()));
        let policy = (self.policy.file.as_str(), self.policy.sha256.as_str());
        let blocks = self.segments.iter().flat_map(|segment| &segment.blocks).flat_map(|block| {
            let shortcut = block.shortcut.as_ref().map(|file| (file.file.as_str(), file.sha256.as_str()));
            std::iter::once((block.file.as_str(), block.sha256.as_str())).chain(shortcut)
        });
        single.into_iter().chain([policy]).chain(blocks)
    }
}
