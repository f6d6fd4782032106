//! What a model is: the manifest, its ONNX graphs, their shapes and FLOPs, and how block graphs join into a path.
//!
//! A bundle is a directory (`models/<name>/<version>/`): `bundle.json`, `labels.txt`, `policy.onnx`, `stem.onnx`, a
//! graph for each residual block, a graph for each shortcut that has work to do, `head.onnx`, and where it is known which
//! masks recur, `paths.json`. The graphs are taken as they are, so any residual architecture can be served: what this
//! module knows of a block is its shape and FLOPs.

mod assembly;
mod error;
mod frequent;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod graph;
mod join;
mod manifest;
mod mix;
pub mod onnx;
mod shapes;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use error::BundleError;
pub use frequent::{Frequent, FrequentError, MOST_FREQUENT};
pub use graph::Graph;
pub use join::{JoinError, join};
pub use manifest::{
    Architecture, BlockRef, FileRef, Filter, InputSpec, Manifest, OPSETS, PolicyRef, Resize, SCHEMA_VERSION,
    SegmentRef, StatedFlops,
};
pub use mix::{COUNTS, ROWS, mix};

use crate::policy::{BlockCost, Costs, Mask};
use graph::{Border, Dims};

/// A checked bundle: every graph read, its hash, border, shapes and FLOPs verified.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub dir: PathBuf,
    pub manifest: Manifest,
    /// One label for each class.
    pub labels: Vec<String>,
    /// `image [N,3,H,W]` -> `logits [N,K]`
    pub policy: Graph,
    /// `image [N,3,H,W]` -> `x`
    pub stem: Graph,
    /// K residual blocks in running order.
    pub blocks: Vec<Block>,
    /// `x` -> class `logits [N,C]`
    pub head: Graph,
    /// The masks that the policy chose most often on the validation images (`paths.json`); none where there is no file.
    pub frequent: Frequent,
    /// Of `bundle.json`.
    manifest_sha256: String,
}

/// A residual block.
#[derive(Debug, Clone)]
pub struct Block {
    /// Index of the segment (the run of blocks of one resolution) it belongs to.
    pub segment: usize,
    /// The whole block: residual branch, shortcut and relu.
    pub kept: Graph,
    /// What runs in its place when it is dropped; `None` for the identity.
    pub shortcut: Option<Graph>,
}

impl Block {
    /// The graph that runs for this block, if any.
    pub fn part(&self, keep: bool) -> Option<&Graph> {
        if keep { Some(&self.kept) } else { self.shortcut.as_ref() }
    }
}

impl Bundle {
    /// Reads and checks the bundle in `dir`.
    ///
    /// # Errors
    /// The first thing that does not fit, with its file, what was found and what was expected: an unreadable file,
    /// a wrong hash, a graph whose names, types or shapes do not follow on each other, a policy whose width is not the
    /// number of blocks, a threshold that is no probability, FLOPs that are not what the manifest states.
    pub fn load(dir: &Path) -> Result<Self, BundleError> {
        let manifest_file = dir.join(MANIFEST);
        let manifest = read(&manifest_file, LARGEST_FILE)?;
        let manifest_sha256 = sha256_hex(&manifest);
        let manifest = Manifest::parse(&manifest_file, &manifest)?;
        let opset = manifest.opset;
        let graph = |name: &str, sha256: &str, border| {
            let file = dir.join(name);
            Graph::parse(&file, &read_hashed(&file, sha256)?, border, opset)
        };
        const BLOCK: Border = Border { input: "x", output: "y" };

        let labels = read_labels(&dir.join(&manifest.labels.file), &manifest.labels.sha256, manifest.classes)?;
        let border = Border { input: "image", output: "logits" };
        let policy = graph(&manifest.policy.file, &manifest.policy.sha256, border)?;
        let stem = graph(&manifest.stem.file, &manifest.stem.sha256, Border { input: "image", output: "x" })?;
        let head = graph(&manifest.head.file, &manifest.head.sha256, Border { input: "x", output: "logits" })?;
        let mut blocks = Vec::with_capacity(manifest.blocks());
        for (segment, spec) in manifest.segments.iter().enumerate() {
            for block in &spec.blocks {
                let kept = graph(&block.file, &block.sha256, BLOCK)?;
                let shortcut =
                    block.shortcut.as_ref().map(|file| graph(&file.file, &file.sha256, BLOCK)).transpose()?;
                blocks.push(Block { segment, kept, shortcut });
            }
        }
        let frequent = Frequent::read(&dir.join(FREQUENT), blocks.len())?.unwrap_or_default();
        let dir = dir.to_path_buf();
        let bundle = Self { dir, manifest, labels, policy, stem, blocks, head, frequent, manifest_sha256 };
        bundle.check(&manifest_file)?;
        Ok(bundle)
    }

    /// Whether its directory holds the same bundle still: the same `bundle.json`, files with the hashes that are in it, and
    /// the same frequent masks.
    pub fn is_current(&self) -> bool {
        let manifest = read(&self.dir.join(MANIFEST), LARGEST_FILE);
        let frequent = || Frequent::read(&self.dir.join(FREQUENT), self.blocks.len());
        let as_stated = |(name, sha256): (&str, &str)| read_hashed(&self.dir.join(name), sha256).is_ok();
        manifest.is_ok_and(|manifest| sha256_hex(&manifest) == self.manifest_sha256)
            && self.manifest.files().all(as_stated)
            && frequent().is_ok_and(|frequent| frequent.unwrap_or_default() == self.frequent)
    }

    /// Shapes follow on each other, and what is computed is what is stated.
    fn check(&self, manifest_file: &Path) -> Result<(), BundleError> {
        let input = &self.manifest.input;
        let image = [input.channels, input.height, input.width].map(|side| side as u64);
        self.policy.expect_input(&image, "the manifest's input")?;
        self.policy.expect_output(&[self.blocks.len() as u64], "one logit a block")?;
        self.stem.expect_input(&image, "the manifest's input")?;

        let mut shape = &self.stem.output;
        for block in &self.blocks {
            block.kept.expect_input(shape, "the output of what runs before it")?;
            match &block.shortcut {
                Some(shortcut) => {
                    shortcut.expect_input(shape, "the input of its block")?;
                    shortcut.expect_output(&block.kept.output, "the output of its block")?;
                }
                None => block.kept.expect_output(shape, "its input, since it has no shortcut graph")?,
            }
            shape = &block.kept.output;
        }
        self.head.expect_input(shape, "the output of the last block")?;
        self.head.expect_output(&[self.manifest.classes as u64], "one logit a class")?;

        let (stated, costs) = (self.manifest.flops, self.costs());
        if costs.most().is_none() {
            return Err(BundleError::mismatch(
                manifest_file,
                "FLOPs",
                "more than 64 bits hold",
                "a network that exists",
            ));
        }
        for (what, stated, counted) in
            [("flops.policy", stated.policy, costs.policy), ("flops.full", stated.full, costs.full())]
        {
            if stated != counted {
                return Err(BundleError::mismatch(
                    manifest_file,
                    what,
                    stated,
                    format!("{counted}, counted from the graphs"),
                ));
            }
        }
        Ok(())
    }

    /// FLOPs of one image, part by part.
    pub fn costs(&self) -> Costs {
        let blocks = self.blocks.iter().map(|block| BlockCost {
            segment: block.segment,
            kept: block.kept.flops,
            dropped: block.shortcut.as_ref().map_or(0, |shortcut| shortcut.flops),
        });
        Costs { policy: self.policy.flops, stem: self.stem.flops, blocks: blocks.collect(), head: self.head.flops }
    }

    /// The graphs that run for `mask`, stem and head included, in order.
    ///
    /// # Panics
    /// The mask is not as long as there are blocks.
    pub fn path(&self, mask: &Mask) -> Vec<&Graph> {
        assert_eq!(mask.len(), self.blocks.len(), "a mask has a bit for each block");
        let blocks = self.blocks.iter().zip(mask.iter()).filter_map(|(block, keep)| block.part(keep));
        std::iter::once(&self.stem).chain(blocks).chain([&self.head]).collect()
    }
}

const MANIFEST: &str = "bundle.json";
const FREQUENT: &str = "paths.json";

/// No file of a bundle is larger; one that claims to be is refused before it is read.
const LARGEST_FILE: u64 = 2 << 30;

fn read(file: &Path, largest: u64) -> Result<Vec<u8>, BundleError> {
    let failed = |reason| BundleError::Read { file: file.to_path_buf(), reason };
    let found = std::fs::metadata(file).map_err(failed)?;
    if !found.is_file() {
        return Err(BundleError::mismatch(file, "kind", "no regular file", "a regular file"));
    }
    let length = found.len();
    if length > largest {
        return Err(BundleError::mismatch(file, "size", format!("{length} bytes"), format!("at most {largest} bytes")));
    }
    std::fs::read(file).map_err(failed)
}

fn read_hashed(file: &Path, expected: &str) -> Result<Vec<u8>, BundleError> {
    let bytes = read(file, LARGEST_FILE)?;
    let found = sha256_hex(&bytes);
    if found != expected.to_ascii_lowercase() {
        return Err(BundleError::mismatch(file, "sha256", found, format!("{expected} (bundle.json)")));
    }
    Ok(bytes)
}

/// SHA-256 of `bytes` in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_labels(file: &Path, sha256: &str, classes: usize) -> Result<Vec<String>, BundleError> {
    let text = String::from_utf8(read_hashed(file, sha256)?)
        .map_err(|_| BundleError::mismatch(file, "encoding", "bytes that are not UTF-8", "UTF-8, one label a line"))?;
    let labels: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if labels.len() != classes {
        return Err(BundleError::mismatch(file, "labels", labels.len(), format!("{classes}, one a class")));
    }
    if let Some(index) = labels.iter().position(String::is_empty) {
        return Err(BundleError::mismatch(file, format!("label on line {}", index + 1), "an empty line", "a name"));
    }
    Ok(labels)
}

/// Prints the shape of one image's tensor, `[16, 32, 32]`.
pub fn shape_text(shape: &[u64]) -> String {
    Dims(shape).to_string()
}
