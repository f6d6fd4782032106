//! Labelled images: CIFAR's binary files, or a folder for each class.

use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::image::{ImageError, MAX_PIXELS, decode};

/// Images with their classes.
pub enum Dataset {
    /// Records of one or two label bytes and 3 x 32 x 32 pixels.
    Cifar { records: Vec<u8>, labels: usize },
    /// Image files and their classes.
    Folder(Vec<(PathBuf, usize)>),
}

/// A data set that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("{}: cannot be read: {reason}", path.display())]
    Read { path: PathBuf, reason: std::io::Error },
    #[error("{}: found {found}, expected {expected}", path.display())]
    Mismatch { path: PathBuf, found: String, expected: String },
    #[error("{}: {reason}", path.display())]
    Image { path: PathBuf, reason: ImageError },
}

const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;

const EXPECTED: &str = "a CIFAR binary file (.bin), a directory with test*.bin in it, or a folder for each class";

impl Dataset {
    /// Opens `path`: a CIFAR-10 or CIFAR-100 binary file (of CIFAR-100 the fine label counts), a directory with
    /// `test*.bin` files in it, or a directory with a folder of images for each of `classes`, named like it, or as many
    /// folders as classes in the classes' order.
    ///
    /// # Errors
    /// Nothing of the kind is there, a file is cut off, or a folder's name is not a class.
    pub fn open(path: &Path, classes: &[String]) -> Result<Self, DatasetError> {
        let wrong = |path: &Path, found: String, expected: &str| DatasetError::Mismatch {
            path: path.to_path_buf(),
            found,
            expected: expected.to_owned(),
        };
        if !path.is_dir() {
            return Self::cifar(&[path.to_path_buf()], path, classes);
        }
        let entries = entries(path)?;
        let named = |entry: &PathBuf| entry.file_name().map(|name| name.to_string_lossy().into_owned());
        let tests: Vec<PathBuf> = entries
            .iter()
            .filter(|entry| named(entry).is_some_and(|name| name.starts_with("test") && name.ends_with(".bin")))
            .cloned()
            .collect();
        if !tests.is_empty() {
            return Self::cifar(&tests, path, classes);
        }
        let folders: Vec<&PathBuf> = entries.iter().filter(|entry| entry.is_dir()).collect();
        let class_of = |name: &str| classes.iter().position(|label| label == name);
        let names: Vec<String> = folders.iter().map(|folder| named(folder).unwrap_or_default()).collect();
        // As many folders as classes, none of them named like one (ImageNet's n01440764): in order, as torchvision does.
        let in_order = folders.len() == classes.len() && names.iter().all(|name| class_of(name).is_none());
        let mut images = Vec::new();
        for (index, (folder, name)) in folders.into_iter().zip(&names).enumerate() {
            let class = if in_order { Some(index) } else { class_of(name) };
            let Some(class) = class else {
                return Err(wrong(folder, format!("a folder '{name}'"), &format!("one of: {}", classes.join(", "))));
            };
            let files = self::entries(folder)?.into_iter().filter(|file| file.is_file());
            images.extend(files.enumerate().map(|(place, file)| (place, class, file)));
        }
        // The first of each class, then the second: a part of the data set is a part of every class.
        images.sort();
        let images: Vec<(PathBuf, usize)> = images.into_iter().map(|(_, class, file)| (file, class)).collect();
        if images.is_empty() {
            return Err(wrong(path, "no images".to_owned(), EXPECTED));
        }
        Ok(Self::Folder(images))
    }

    fn cifar(files: &[PathBuf], path: &Path, classes: &[String]) -> Result<Self, DatasetError> {
        let mut records = Vec::new();
        for file in files {
            let read = std::fs::read(file);
            records.extend(read.map_err(|reason| DatasetError::Read { path: file.clone(), reason })?);
        }
        let fits = |labels: &usize| !records.is_empty() && records.len().is_multiple_of(labels + PIXELS);
        let Some(labels) = [1, 2].into_iter().find(fits) else {
            return Err(DatasetError::Mismatch {
                path: path.to_path_buf(),
                found: format!("{} bytes", records.len()),
                expected: format!("{EXPECTED}; a CIFAR file has records of 3073 (CIFAR-10) or 3074 bytes (CIFAR-100)"),
            });
        };
        let largest = records.chunks_exact(labels + PIXELS).map(|record| usize::from(record[labels - 1])).max();
        if largest.is_some_and(|class| class >= classes.len()) {
            return Err(DatasetError::Mismatch {
                path: path.to_path_buf(),
                found: format!("class {}", largest.unwrap_or(0)),
                expected: format!("the model's {} classes", classes.len()),
            });
        }
        Ok(Self::Cifar { records, labels })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::Cifar { records, labels } => records.len() / (labels + PIXELS),
            Self::Folder(images) => images.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The image at `index` and its class.
    ///
    /// # Errors
    /// Its file cannot be read or decoded.
    ///
    /// # Panics
    /// There is no such image.
    pub fn get(&self, index: usize) -> Result<(RgbImage, usize), DatasetError> {
        match self {
            Self::Cifar { records, labels } => {
                let record = &records[index * (labels + PIXELS)..][..labels + PIXELS];
                let (label, planes) = record.split_at(*labels);
                let image = RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
                    let at = y as usize * SIDE + x as usize;
                    image::Rgb([planes[at], planes[SIDE * SIDE + at], planes[2 * SIDE * SIDE + at]])
                });
                Ok((image, usize::from(label[labels - 1])))
            }
            Self::Folder(images) => {
                let (path, class) = &images[index];
                let bytes = std::fs::read(path).map_err(|reason| DatasetError::Read { path: path.clone(), reason })?;
                let image =
                    decode(&bytes, MAX_PIXELS).map_err(|reason| DatasetError::Image { path: path.clone(), reason })?;
                Ok((image, *class))
            }
        }
    }
}

/// What is in a directory, sorted by name.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let failed = |reason| DatasetError::Read { path: dir.to_path_buf(), reason };
    let found = std::fs::read_dir(dir).map_err(failed)?;
    let mut found =
        found.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    found.sort();
    Ok(found)
}
