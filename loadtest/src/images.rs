//! The pool: the images of a run, as they go over the wire, and the bad inputs among them.

mod bad;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use blockdrop::dataset::{Dataset, DatasetError};
use blockdrop::image::{ImageError, MAX_PIXELS, decode};
use bytes::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{ImageFormat, RgbImage};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::plan::{Format, Images};

pub use bad::Bad;

/// Images ready to be sent, in a seeded order.
#[derive(Debug, Clone)]
pub struct Pool {
    pictures: Vec<Picture>,
    bad: Vec<Bad>,
}

/// An image of the pool.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Its file's name, or its number in CIFAR's files; for messages.
    pub name: String,
    /// The bytes of a file.
    pub bytes: Bytes,
    /// Its class.
    pub label: Option<u32>,
}

/// A pool that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("{}: cannot be read: {reason}", path.display())]
    Read { path: PathBuf, reason: std::io::Error },
    #[error("{}: found {found}, expected {expected}", path.display())]
    Mismatch { path: PathBuf, found: String, expected: String },
    #[error("{name}: {reason}")]
    Image { name: String, reason: ImageError },
    #[error("{name}: cannot be written as {format:?}: {reason}")]
    Encode { name: String, format: Format, reason: image::ImageError },
    #[error("images: found {found}, expected {expected}")]
    Plan { found: String, expected: &'static str },
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

const EXPECTED: &str = "image files such as .jpg or .png, a folder of them for each class, a CIFAR binary file, or a \
                        directory with test*.bin in it";

/// Of a file, by its name: what servers of images read.
const EXTENSIONS: [&str; 6] = ["bmp", "gif", "jpeg", "jpg", "png", "webp"];

/// Bytes of all images together, at most.
const MOST_BYTES: usize = 1 << 30;

/// JPEG's quality, of 100.
const QUALITY: u8 = 90;

enum Source {
    Cifar(Dataset),
    Files(Vec<(PathBuf, Option<usize>)>),
}

impl Pool {
    /// Reads what `images` says; `seed` chooses and orders. Files go as they are unless there are sizes to resize them to;
    /// images of CIFAR, and resized ones, are written in the plan's format.
    ///
    /// Labels come from CIFAR's records, or from folders: named like one of `classes`, or as many as there are classes, in
    /// order. Without `classes` (a server that does not name its own) folders count from 0 in the order of their names. A
    /// directory with image files of its own is taken as flat, and its images have no labels.
    ///
    /// # Errors
    /// Nothing of the kind is there, a label is no class, an image that has to be resized cannot be decoded, or all of
    /// them take more than a gibibyte.
    pub fn load(images: &Images, seed: u64, classes: Option<&[String]>) -> Result<Self, PoolError> {
        let wrong = |found: String, expected| PoolError::Plan { found, expected };
        if images.limit == 0 {
            return Err(wrong("limit 0".to_owned(), "limit to be 1 or more"));
        }
        let fits = |&(width, height): &(u32, u32)| {
            width > 0 && height > 0 && u64::from(width) * u64::from(height) <= MAX_PIXELS
        };
        if let Some((width, height)) = images.sizes.iter().find(|size| !fits(size)) {
            return Err(wrong(format!("size {width}x{height}"), "sizes from 1x1 to 64 million pixels"));
        }
        let source = source(&images.from, classes)?;
        let count = match &source {
            Source::Cifar(data) => data.len(),
            Source::Files(files) => files.len(),
        };
        if count == 0 {
            let path = images.from.clone();
            return Err(PoolError::Mismatch { path, found: "no images".to_owned(), expected: EXPECTED.to_owned() });
        }
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let chosen = rand::seq::index::sample(&mut generator, count, count.min(images.limit));
        let (mut pictures, mut total) = (Vec::with_capacity(chosen.len()), 0);
        for (place, index) in chosen.into_iter().enumerate() {
            let size = images.sizes.get(place % images.sizes.len().max(1)).copied();
            let picture = read(&source, index, size, images.format)?;
            total += picture.bytes.len();
            if total > MOST_BYTES {
                let found = format!("more than {MOST_BYTES} bytes in the first {} images", place + 1);
                return Err(wrong(found, "a limit that keeps them below"));
            }
            pictures.push(picture);
        }
        Ok(Self { pictures, bad: bad::inputs() })
    }

    /// Images, 1 or more.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    pub fn pictures(&self) -> &[Picture] {
        &self.pictures
    }

    /// Inputs that a correct server refuses, whatever types of images it reads.
    pub fn bad(&self) -> &[Bad] {
        &self.bad
    }
}

fn source(path: &Path, classes: Option<&[String]>) -> Result<Source, PoolError> {
    // Any label of a byte, where nothing is known of the classes.
    let open = |classes: Option<&[String]>| {
        let any: Vec<String> = (0..=u8::MAX).map(|class| class.to_string()).collect();
        Dataset::open(path, classes.unwrap_or(&any))
    };
    if !path.is_dir() {
        return Ok(Source::Cifar(open(classes)?));
    }
    let entries = entries(path)?;
    let name = |entry: &PathBuf| entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if entries.iter().map(name).any(|name| name.starts_with("test") && name.ends_with(".bin")) {
        return Ok(Source::Cifar(open(classes)?));
    }
    let files: Vec<_> = entries.iter().filter(|file| is_image(file)).map(|file| (file.clone(), None)).collect();
    let folders: Vec<String> = entries.iter().filter(|entry| entry.is_dir()).map(name).collect();
    if !files.is_empty() || folders.is_empty() {
        return Ok(Source::Files(files));
    }
    match open(Some(classes.unwrap_or(&folders)))? {
        Dataset::Folder(files) => {
            let files = files.into_iter().filter(|(file, _)| is_image(file));
            Ok(Source::Files(files.map(|(file, class)| (file, Some(class))).collect()))
        }
        data @ Dataset::Cifar { .. } => Ok(Source::Cifar(data)),
    }
}

/// What is in a directory, sorted by name.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, PoolError> {
    let failed = |reason| PoolError::Read { path: dir.to_path_buf(), reason };
    let found = std::fs::read_dir(dir).map_err(failed)?;
    let mut found =
        found.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    found.sort();
    Ok(found)
}

fn is_image(file: &Path) -> bool {
    let extension = file.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    EXTENSIONS.contains(&&*extension) && file.is_file()
}

fn read(source: &Source, index: usize, size: Option<(u32, u32)>, format: Format) -> Result<Picture, PoolError> {
    let class = |class: usize| u32::try_from(class).ok();
    match source {
        Source::Cifar(data) => {
            let (image, label) = data.get(index)?;
            let name = format!("image {index}");
            let bytes = encode(&name, &resized(image, size), format)?;
            Ok(Picture { name, bytes, label: class(label) })
        }
        Source::Files(files) => {
            let (path, label) = &files[index];
            let name = path.display().to_string();
            let mut bytes = std::fs::read(path)
                .map(Bytes::from)
                .map_err(|reason| PoolError::Read { path: path.clone(), reason })?;
            if size.is_some() {
                let image =
                    decode(&bytes, MAX_PIXELS).map_err(|reason| PoolError::Image { name: name.clone(), reason })?;
                bytes = encode(&name, &resized(image, size), format)?;
            }
            Ok(Picture { name, bytes, label: label.and_then(class) })
        }
    }
}

/// `image` at `size` (width and height), bilinear with antialiasing.
pub(crate) fn resized(image: RgbImage, size: Option<(u32, u32)>) -> RgbImage {
    match size {
        Some((width, height)) if (width, height) != image.dimensions() => {
            image::imageops::resize(&image, width, height, FilterType::Triangle)
        }
        _ => image,
    }
}

fn encode(name: &str, image: &RgbImage, format: Format) -> Result<Bytes, PoolError> {
    written(image, format).map_err(|reason| PoolError::Encode { name: name.to_owned(), format, reason })
}

/// The file of an image.
fn written(image: &RgbImage, format: Format) -> Result<Bytes, image::ImageError> {
    let mut bytes = Vec::new();
    match format {
        Format::Png => image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?,
        Format::Jpeg => image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY))?,
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(from: &Path) -> Images {
        Images { from: from.to_path_buf(), limit: 1000, sizes: Vec::new(), format: Format::Png, bad: 0.0 }
    }

    fn picture(shade: u8) -> RgbImage {
        RgbImage::from_pixel(12, 8, image::Rgb([shade, 0, 255 - shade]))
    }

    fn write(file: &Path, shade: u8) {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        picture(shade).save(file).unwrap();
    }

    fn names(classes: &[&str]) -> Vec<String> {
        classes.iter().map(|&class| class.to_owned()).collect()
    }

    #[test]
    fn a_flat_folder_goes_as_it_is_and_has_no_labels() {
        let dir = tempfile::tempdir().unwrap();
        for shade in 0..9 {
            write(&dir.path().join(format!("{shade}.png")), shade);
        }
        std::fs::write(dir.path().join("README.md"), "no image").unwrap();
        let pool = Pool::load(&plan(dir.path()), 1, None).unwrap();
        assert_eq!(pool.len(), 9);
        for picture in pool.pictures() {
            assert_eq!(picture.label, None);
            assert_eq!(picture.bytes, std::fs::read(&picture.name).unwrap());
        }
        let order = |seed| {
            let pool = Pool::load(&Images { limit: 4, ..plan(dir.path()) }, seed, None).unwrap();
            pool.pictures().iter().map(|picture| picture.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(order(7), order(7));
        assert_eq!(order(7).len(), 4);
        assert!((0..20).any(|seed| order(seed) != order(7)));
    }

    #[test]
    fn folders_are_classes_by_name_or_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for (shade, folder) in ["cat", "dog"].into_iter().enumerate() {
            write(&dir.path().join(folder).join("one.png"), shade as u8);
            std::fs::write(dir.path().join(folder).join("notes.txt"), "no image").unwrap();
        }
        let labels = |classes: Option<&[String]>| {
            let pool = Pool::load(&plan(dir.path()), 1, classes).unwrap();
            let mut found: Vec<_> = pool.pictures().iter().map(|at| (at.name.clone(), at.label.unwrap())).collect();
            found.sort();
            found.into_iter().map(|(_, label)| label).collect::<Vec<_>>()
        };
        assert_eq!(labels(Some(&names(&["bird", "dog", "cat"]))), [2, 1]);
        assert_eq!(labels(Some(&names(&["n01", "n02"]))), [0, 1]);
        assert_eq!(labels(None), [0, 1]);
        let error = Pool::load(&plan(dir.path()), 1, Some(&names(&["cat", "bird", "fish"]))).unwrap_err().to_string();
        assert!(error.contains("dog") && error.contains("cat, bird, fish"), "{error}");
    }

    #[test]
    fn cifar_is_written_as_files_with_labels() {
        let dir = tempfile::tempdir().unwrap();
        let record = |label: u8| std::iter::once(label).chain((0..3072).map(|at| (at % 251) as u8));
        std::fs::write(dir.path().join("test_batch.bin"), (0..5).flat_map(record).collect::<Vec<u8>>()).unwrap();
        for (format, start) in [(Format::Png, &b"\x89PNG"[..]), (Format::Jpeg, b"\xff\xd8\xff")] {
            let pool = Pool::load(&Images { format, ..plan(dir.path()) }, 3, None).unwrap();
            assert_eq!(pool.len(), 5);
            let mut labels: Vec<_> = pool.pictures().iter().filter_map(|picture| picture.label).collect();
            labels.sort_unstable();
            assert_eq!(labels, [0, 1, 2, 3, 4]);
            for picture in pool.pictures() {
                assert!(picture.bytes.starts_with(start));
                assert_eq!(decode(&picture.bytes, MAX_PIXELS).unwrap().dimensions(), (32, 32));
            }
        }
        let file = dir.path().join("test_batch.bin");
        assert_eq!(Pool::load(&plan(&file), 3, Some(&names(&["a", "b", "c", "d", "e"]))).unwrap().len(), 5);
        assert!(Pool::load(&plan(&file), 3, Some(&names(&["a"]))).is_err());
    }

    #[test]
    fn sizes_come_in_turn() {
        let dir = tempfile::tempdir().unwrap();
        for shade in 0..6 {
            write(&dir.path().join(format!("{shade}.bmp")), shade);
        }
        let sizes = vec![(20, 10), (5, 7)];
        let pool = Pool::load(&Images { sizes: sizes.clone(), ..plan(dir.path()) }, 1, None).unwrap();
        for (place, picture) in pool.pictures().iter().enumerate() {
            assert!(picture.bytes.starts_with(b"\x89PNG"));
            assert_eq!(decode(&picture.bytes, MAX_PIXELS).unwrap().dimensions(), sizes[place % 2]);
        }
    }

    #[test]
    fn what_cannot_be_sent_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = |images: &Images| Pool::load(images, 1, None).unwrap_err().to_string();
        assert!(error(&plan(dir.path())).contains("found no images, expected image files"));
        assert!(error(&Images { limit: 0, ..plan(dir.path()) }).contains("limit 0"));
        assert!(error(&Images { sizes: vec![(0, 4)], ..plan(dir.path()) }).contains("0x4"));
        assert!(error(&plan(&dir.path().join("nowhere"))).contains("nowhere"));
        std::fs::write(dir.path().join("broken.png"), "no image").unwrap();
        assert_eq!(Pool::load(&plan(dir.path()), 1, None).unwrap().len(), 1);
        assert!(error(&Images { sizes: vec![(4, 4)], ..plan(dir.path()) }).contains("broken.png"));
    }
}
