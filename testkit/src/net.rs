//! A residual network with random weights: as a bundle, and as the reference graph of a mask.

use std::path::Path;

use blockdrop::bundle::Bundle;
use blockdrop::policy::Mask;
use rand::{Rng, RngExt};
use serde_json::json;

use crate::builder::{Builder, Conv, Extreme, OPSET};

/// How pixels are normalised, channel by channel.
pub(crate) const MEAN: [f64; 3] = [0.5, 0.45, 0.4];
pub(crate) const STD: [f64; 3] = [0.25, 0.25, 0.3];

/// The residual branch of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two 3x3 convolutions (CIFAR ResNets, ResNet-18/34).
    Basic,
    /// 1x1, 3x3 with the stride, 1x1 to four times the channels (ResNet-50/101/152).
    Bottleneck,
}

/// What the first block of a segment adds its residual to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortcut {
    /// Average pool and zero channels appended, no weights; the identity in the first segment (CIFAR).
    Pooled,
    /// 1x1 convolution, in the first segment too (ImageNet).
    Projection,
}

/// A residual network with weights drawn from `seed`.
#[derive(Debug, Clone)]
pub struct Net {
    pub seed: u64,
    pub kind: Kind,
    pub shortcut: Shortcut,
    /// Blocks in each segment.
    pub segments: Vec<usize>,
    /// Channels of the first segment; doubled with each one.
    pub width: u64,
    /// Height and width of the image; halved with each segment but the first.
    pub side: u64,
    pub classes: u64,
    /// ONNX Runtime fails on some images: the stem on one that is all white, the policy on one that is all black. All
    /// others get the same values as without.
    pub traps: bool,
}

struct BlockSpec {
    index: usize,
    segment: usize,
    from: u64,
    to: u64,
    stride: u64,
    side: u64,
    first: bool,
}

impl Net {
    /// Three segments of two blocks on 16x16 images, 10 classes: a CIFAR ResNet in small.
    pub fn tiny(seed: u64) -> Self {
        Self {
            seed,
            kind: Kind::Basic,
            shortcut: Shortcut::Pooled,
            segments: vec![2, 2, 2],
            width: 4,
            side: 16,
            classes: 10,
            traps: false,
        }
    }

    /// Any small net: basic or bottleneck, either shortcut, one to three segments of one to four blocks.
    pub fn random(generator: &mut impl Rng) -> Self {
        let segments = (0..generator.random_range(1..=3)).map(|_| generator.random_range(1..=4)).collect();
        Self {
            seed: generator.random(),
            kind: if generator.random() { Kind::Basic } else { Kind::Bottleneck },
            shortcut: if generator.random() { Shortcut::Pooled } else { Shortcut::Projection },
            segments,
            width: generator.random_range(2..=6),
            side: 8,
            classes: generator.random_range(2..=7),
            traps: false,
        }
    }

    pub fn blocks(&self) -> usize {
        self.segments.iter().sum()
    }

    fn specs(&self) -> Vec<BlockSpec> {
        let expansion = if self.kind == Kind::Bottleneck { 4 } else { 1 };
        let mut specs = Vec::new();
        // With the pooled shortcut the stem already has the first segment's channels, so that block 0 adds the identity.
        let mut channels = self.stem_channels();
        for (segment, &size) in self.segments.iter().enumerate() {
            let to = (self.width << segment) * expansion;
            for position in 0..size {
                let first = position == 0;
                let stride = if first && segment > 0 { 2 } else { 1 };
                let side = self.side >> segment;
                specs.push(BlockSpec { index: specs.len(), segment, from: channels, to, stride, side, first });
                channels = to;
            }
        }
        specs
    }

    fn stem_channels(&self) -> u64 {
        match (self.shortcut, self.kind) {
            (Shortcut::Pooled, Kind::Bottleneck) => self.width * 4,
            _ => self.width,
        }
    }

    fn stem(&self, builder: &mut Builder, image: &str) -> String {
        let conv = Conv { from: 3, to: self.stem_channels(), kernel: 3, stride: 1 };
        let mut x = builder.conv("stem", image, conv, 1.0);
        if self.traps {
            x = builder.trap("stem", image, Extreme::White, &x);
        }
        builder.node("Relu", "stem", &[&x], vec![])
    }

    fn has_shortcut(&self, spec: &BlockSpec) -> bool {
        spec.first && (self.shortcut == Shortcut::Projection || spec.segment > 0)
    }

    fn shortcut(&self, builder: &mut Builder, spec: &BlockSpec, x: &str) -> String {
        let layer = format!("block{}.shortcut", spec.index);
        match self.shortcut {
            _ if !self.has_shortcut(spec) => x.to_owned(),
            Shortcut::Pooled => builder.pooled_shortcut(&layer, x, spec.from, spec.to, spec.stride),
            Shortcut::Projection => {
                let conv = Conv { from: spec.from, to: spec.to, kernel: 1, stride: spec.stride };
                builder.conv(&layer, x, conv, 0.7)
            }
        }
    }

    fn kept(&self, builder: &mut Builder, spec: &BlockSpec, x: &str) -> String {
        let name = format!("block{}", spec.index);
        let layer = |number: usize| format!("{name}.conv{number}");
        let convs = match self.kind {
            Kind::Basic => vec![
                Conv { from: spec.from, to: spec.to, kernel: 3, stride: spec.stride },
                Conv { from: spec.to, to: spec.to, kernel: 3, stride: 1 },
            ],
            Kind::Bottleneck => {
                let inner = spec.to / 4;
                vec![
                    Conv { from: spec.from, to: inner, kernel: 1, stride: 1 },
                    Conv { from: inner, to: inner, kernel: 3, stride: spec.stride },
                    Conv { from: inner, to: spec.to, kernel: 1, stride: 1 },
                ]
            }
        };
        let mut branch = x.to_owned();
        for (number, conv) in convs.iter().enumerate() {
            branch = builder.conv(&layer(number), &branch, *conv, 0.6);
            if number + 1 < convs.len() {
                branch = builder.node("Relu", &layer(number), &[&branch], vec![]);
            }
        }
        let shortcut = self.shortcut(builder, spec, x);
        let sum = builder.node("Add", &name, &[&branch, &shortcut], vec![]);
        builder.node("Relu", &name, &[&sum], vec![])
    }

    fn head(&self, builder: &mut Builder, x: &str) -> String {
        let channels = self.specs().last().map_or(self.stem_channels(), |spec| spec.to);
        let pooled = builder.node("GlobalAveragePool", "head", &[x], vec![]);
        let flat = builder.node("Flatten", "head", &[&pooled], vec![]);
        builder.linear("head", &flat, channels, self.classes, 1.0)
    }

    /// The net with the dropped blocks taken out, as one graph `image` -> `logits`.
    pub fn reference(&self, mask: &Mask) -> Vec<u8> {
        let mut builder = Builder::new(self.seed);
        let mut x = self.stem(&mut builder, "image");
        for (spec, keep) in self.specs().iter().zip(mask.iter()) {
            x = if keep { self.kept(&mut builder, spec, &x) } else { self.shortcut(&mut builder, spec, &x) };
        }
        self.head(&mut builder, &x);
        builder.name_last("logits");
        builder.finish(("image", &[3, self.side, self.side]), ("logits", &[self.classes]))
    }

    /// Writes the net as a bundle into `dir`, which is made where it is not there.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(dir.join("blocks"))?;
        std::fs::create_dir_all(dir.join("shortcuts"))?;
        let put = |name: &str, bytes: Vec<u8>| -> std::io::Result<serde_json::Value> {
            std::fs::write(dir.join(name), &bytes)?;
            Ok(json!({"file": name, "sha256": blockdrop::bundle::sha256_hex(&bytes)}))
        };
        let image = [3, self.side, self.side];
        let specs = self.specs();
        let graph = |input: (&str, &[u64]), output: (&str, &[u64]), build: &dyn Fn(&mut Builder)| {
            let mut builder = Builder::new(self.seed);
            build(&mut builder);
            builder.name_last(output.0);
            builder.finish(input, output)
        };

        let blocks = self.blocks() as u64;
        let policy = put(
            "policy.onnx",
            graph(("image", &image), ("logits", &[blocks]), &|builder| {
                let conv = Conv { from: 3, to: 8, kernel: 3, stride: 2 };
                let mut x = builder.conv("policy", "image", conv, 1.0);
                if self.traps {
                    x = builder.trap("policy", "image", Extreme::Black, &x);
                }
                let x = builder.node("Relu", "policy", &[&x], vec![]);
                let x = builder.node("GlobalAveragePool", "policy", &[&x], vec![]);
                let x = builder.node("Flatten", "policy", &[&x], vec![]);
                builder.linear("policy.linear", &x, 8, blocks, 1.5);
            }),
        )?;
        let mut policy = policy;
        policy["threshold"] = json!(0.5);
        let stem_out = [self.stem_channels(), self.side, self.side];
        let stem = put(
            "stem.onnx",
            graph(("image", &image), ("x", &stem_out), &|builder| {
                self.stem(builder, "image");
            }),
        )?;
        let mut segments = vec![json!({"blocks": []}); self.segments.len()];
        let mut last = stem_out;
        for spec in &specs {
            let output = [spec.to, spec.side, spec.side];
            let kept = graph(("x", &last), ("y", &output), &|builder| {
                self.kept(builder, spec, "x");
            });
            let mut block = put(&format!("blocks/{:03}.onnx", spec.index), kept)?;
            if self.has_shortcut(spec) {
                let shortcut = graph(("x", &last), ("y", &output), &|builder| {
                    self.shortcut(builder, spec, "x");
                });
                block["shortcut"] = put(&format!("shortcuts/{:03}.onnx", spec.index), shortcut)?;
            }
            segments[spec.segment]["blocks"].as_array_mut().expect("a list").push(block);
            last = output;
        }
        let head = put(
            "head.onnx",
            graph(("x", &last), ("logits", &[self.classes]), &|builder| {
                self.head(builder, "x");
            }),
        )?;
        let labels: String = (0..self.classes).map(|class| format!("class {class}\n")).collect();
        let labels = put("labels.txt", labels.into_bytes())?;
        let mut manifest = json!({
            "schema_version": 1,
            "description": "random weights",
            "architecture": {"backbone": format!("{:?} {:?}", self.kind, self.segments), "policy": "tiny", "dataset": "none"},
            "opset": OPSET,
            "classes": self.classes,
            "labels": labels,
            "input": {
                "channels": 3, "height": self.side, "width": self.side,
                "mean": MEAN, "std": STD,
                "resize": {"short_side": self.side, "filter": "bilinear"},
            },
            "policy": policy, "stem": stem, "segments": segments, "head": head,
            "flops": {"policy": self.policy_flops(), "full": self.full_flops()},
        });
        manifest["provenance"] = json!({"seed": self.seed});
        std::fs::write(dir.join("bundle.json"), serde_json::to_vec_pretty(&manifest)?)
    }

    /// Writes the net into `models/<name>/<version>` and loads it.
    ///
    /// # Panics
    /// It cannot be written, or blockdrop refuses it.
    pub fn bundle(&self, dir: &Path) -> Bundle {
        self.write(dir).expect("the bundle can be written");
        Bundle::load(dir).expect("a made-up bundle loads")
    }

    /// FLOPs by the paper's formula, from the description alone.
    pub fn full_flops(&self) -> u64 {
        let conv = |from: u64, to: u64, kernel: u64, side: u64| 2 * from * to * kernel * kernel * side * side;
        let mut flops = conv(3, self.stem_channels(), 3, self.side);
        for spec in self.specs() {
            let before = spec.side * spec.stride;
            flops += match self.kind {
                Kind::Basic => conv(spec.from, spec.to, 3, spec.side) + conv(spec.to, spec.to, 3, spec.side),
                Kind::Bottleneck => {
                    let inner = spec.to / 4;
                    conv(spec.from, inner, 1, before)
                        + conv(inner, inner, 3, spec.side)
                        + conv(inner, spec.to, 1, spec.side)
                }
            };
            if self.has_shortcut(&spec) && self.shortcut == Shortcut::Projection {
                flops += conv(spec.from, spec.to, 1, spec.side);
            }
        }
        flops + 2 * self.specs().last().map_or(0, |spec| spec.to) * self.classes
    }

    /// The policy's FLOPs: a 3x3/2 convolution to 8 channels and a linear layer.
    pub fn policy_flops(&self) -> u64 {
        let side = self.side.div_ceil(2);
        2 * 3 * 8 * 9 * side * side + 2 * 8 * self.blocks() as u64
    }
}
