//! What is run: images and their masks.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use blockdrop::dataset::Dataset;
use blockdrop::engine::Engine;
use blockdrop::image::{MAX_PIXELS, decode, preprocess};
use blockdrop::policy::{Choice, Mask};
use image::RgbImage;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Where masks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Masks {
    Policy,
    Frequent,
}

impl FromStr for Masks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "policy" => Ok(Self::Policy),
            "frequent" => Ok(Self::Frequent),
            _ => Err(format!("unknown masks '{text}', expected policy or frequent")),
        }
    }
}

impl fmt::Display for Masks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Policy => "policy",
            Self::Frequent => "frequent",
        })
    }
}

/// Images as the model takes them, each with the mask that it runs.
pub(super) struct Work {
    pub(super) pixels: Vec<Vec<f32>>,
    pub(super) masks: Vec<Mask>,
    /// The images as files.
    pub(super) files: Vec<Vec<u8>>,
}

impl Work {
    pub(super) fn load(path: &Path, engine: &Engine, count: usize, masks: Masks) -> anyhow::Result<Self> {
        let (images, files) = read(path, &engine.bundle().labels, count)?;
        let input = &engine.bundle().manifest.input;
        let tensors: Vec<Vec<f32>> = images.iter().map(|image| preprocess(image, input)).collect();
        let pixels: Vec<Vec<f32>> = tensors.into_iter().cycle().take(count).collect();
        let masks = match masks {
            Masks::Policy => learned(engine, &pixels)?,
            Masks::Frequent => drawn(engine, count)?,
        };
        Ok(Self { pixels, masks, files })
    }

    pub(super) fn distinct(&self) -> usize {
        self.masks.iter().collect::<BTreeSet<_>>().len()
    }
}

fn learned(engine: &Engine, pixels: &[Vec<f32>]) -> anyhow::Result<Vec<Mask>> {
    let selection = Choice::default().check(engine.costs(), engine.bundle().manifest.policy.threshold)?;
    let mask = |image: &Vec<f32>| -> anyhow::Result<Mask> {
        let logits = engine.policy_logits(&[image])?;
        Ok(selection.learned(engine.costs(), &logits[0]))
    };
    pixels.iter().map(mask).collect()
}

/// `count` masks drawn by their shares; the same ones each time.
fn drawn(engine: &Engine, count: usize) -> anyhow::Result<Vec<Mask>> {
    let frequent = &engine.bundle().frequent.0;
    let total: f64 = frequent.iter().map(|(_, share)| share).sum();
    if total <= 0.0 {
        bail!("{}: no frequent masks (paths.json), expected some for --masks frequent", engine.bundle().dir.display());
    }
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let draw = |_| {
        let mut left = generator.random_range(0.0..total);
        let found = frequent.iter().find(|(_, share)| {
            left -= share;
            left < 0.0
        });
        found.unwrap_or(&frequent[0]).0.clone()
    };
    Ok((0..count).map(draw).collect())
}

/// The first images of CIFAR files or of a folder of image files, at most `most`: as they are and as files (of CIFAR,
/// PNG).
fn read(path: &Path, labels: &[String], most: usize) -> anyhow::Result<(Vec<RgbImage>, Vec<Vec<u8>>)> {
    let names = if path.is_dir() { names(path)? } else { Vec::new() };
    let is_cifar = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "bin");
    if !path.is_dir() || names.iter().any(is_cifar) {
        let data = Dataset::open(path, labels)?;
        let image = |index| -> anyhow::Result<(RgbImage, Vec<u8>)> {
            let (image, _) = data.get(index)?;
            let mut png = Cursor::new(Vec::new());
            image.write_to(&mut png, image::ImageFormat::Png)?;
            Ok((image, png.into_inner()))
        };
        return (0..data.len().min(most)).map(image).collect();
    }
    let is_image = |file: &PathBuf| {
        let extension = file.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        ["bmp", "gif", "jpeg", "jpg", "png", "webp"].contains(&&*extension)
    };
    let files: Vec<PathBuf> = names.into_iter().filter(|file| is_image(file) && file.is_file()).take(most).collect();
    if files.is_empty() {
        bail!("{}: found no images, expected files such as .jpg or .png, or CIFAR's .bin files", path.display());
    }
    let image = |file: &PathBuf| -> anyhow::Result<(RgbImage, Vec<u8>)> {
        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
        Ok((decode(&bytes, MAX_PIXELS).with_context(|| file.display().to_string())?, bytes))
    };
    files.iter().map(image).collect()
}

fn names(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut names = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>()?;
    names.sort();
    Ok(names)
}
