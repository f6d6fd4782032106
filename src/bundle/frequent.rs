//! The file of the masks that recur: those of the validation images in a bundle (`paths.json`), or those that a server saw.
//!
//! `{"schema": 1, "paths": [{"mask": "1101", "share": 0.52}, {"mask": "1001", "share": 0.31}]}`, the most frequent first;
//! `share` is the part of the images seen that had the mask.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::policy::Mask;

/// Masks that a file of frequent masks holds, at most.
pub const MOST_FREQUENT: usize = 64;

/// A file is not larger than this; one that is, is no file of frequent masks.
const LARGEST_FILE: u64 = 1 << 20;

const SCHEMA: u32 = 1;

/// A file of frequent masks that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct FrequentError {
    file: PathBuf,
    reason: String,
}

#[derive(Serialize, Deserialize)]
struct File {
    schema: u32,
    paths: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    mask: String,
    share: f64,
}

/// Masks with their share of the images, the most frequent first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Frequent(pub Vec<(Mask, f64)>);

impl Frequent {
    /// Reads a file of frequent masks of `blocks` bits; `None` where there is no such file.
    ///
    /// # Errors
    /// It cannot be read or is no such file, a mask has another length or comes twice, or shares are no parts of one.
    pub fn read(file: &Path, blocks: usize) -> Result<Option<Self>, FrequentError> {
        let failed = |reason: String| FrequentError { file: file.to_path_buf(), reason };
        // A link that leads nowhere is there, and is an error.
        match file.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
            Ok(_) => {}
        }
        let bytes = super::read(file, LARGEST_FILE).map_err(|error| failed(error.reason()))?;
        let found: File = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        if found.schema != SCHEMA {
            return Err(failed(format!("schema: found {}, expected {SCHEMA}", found.schema)));
        }
        let mut paths: Vec<(Mask, f64)> = Vec::with_capacity(found.paths.len());
        for (at, Entry { mask, share }) in found.paths.into_iter().enumerate() {
            let failed = |reason: String| failed(format!("paths[{at}]: {reason}"));
            let mask: Mask = mask.parse().map_err(|error| failed(format!("mask: {error}")))?;
            if mask.len() != blocks {
                return Err(failed(format!("mask: found {} bits, expected {blocks}, one for each block", mask.len())));
            }
            if paths.iter().any(|(other, _)| *other == mask) {
                return Err(failed(format!("mask: found {mask} again, expected each mask once")));
            }
            if !(0.0..=1.0).contains(&share) {
                return Err(failed(format!("share: found {share}, expected a number from 0 to 1")));
            }
            paths.push((mask, share));
        }
        paths.sort_by(|(a, a_share), (b, b_share)| b_share.total_cmp(a_share).then_with(|| b.cmp(a)));
        paths.truncate(MOST_FREQUENT);
        Ok(Some(Self(paths)))
    }

    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be made or written to.
    pub fn write(&self, file: &Path) -> Result<(), FrequentError> {
        let failed = |error: std::io::Error| FrequentError { file: file.to_path_buf(), reason: error.to_string() };
        let paths = self.0.iter().map(|(mask, share)| Entry { mask: mask.to_string(), share: *share }).collect();
        let text =
            serde_json::to_string_pretty(&File { schema: SCHEMA, paths }).map_err(|error| failed(error.into()))?;
        let dir = file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(failed)?;
        let mut beside = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        beside.write_all(text.as_bytes()).and_then(|()| beside.write_all(b"\n")).map_err(failed)?;
        beside.as_file().sync_all().map_err(failed)?;
        beside.persist(file).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(bits: &str) -> Mask {
        bits.parse().unwrap()
    }

    #[test]
    fn files_read_as_they_were_written() {
        let frequent = Frequent(vec![(mask("101"), 0.5), (mask("111"), 0.25), (mask("100"), 0.25)]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/paths.json");
        frequent.write(&file).unwrap();
        assert_eq!(Frequent::read(&file, 3).unwrap(), Some(frequent));
        assert_eq!(Frequent::read(&dir.path().join("none.json"), 3).unwrap(), None);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("paths.json");
        for (text, expected) in [
            ("{", "EOF"),
            (r#"{"schema": 2, "paths": []}"#, "schema: found 2, expected 1"),
            (r#"{"schema": 1, "paths": [{"mask": "10", "share": 1}]}"#, "paths[0]: mask: found 2 bits, expected 3"),
            (r#"{"schema": 1, "paths": [{"mask": "1x0", "share": 1}]}"#, "paths[0]: mask: "),
            (r#"{"schema": 1, "paths": [{"mask": "110", "share": 1.5}]}"#, "paths[0]: share: found 1.5"),
            (
                r#"{"schema": 1, "paths": [{"mask": "110", "share": 0.5}, {"mask": "110", "share": 0.5}]}"#,
                "paths[1]: mask: found 110 again",
            ),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Frequent::read(&file, 3).unwrap_err().to_string();
            assert!(error.contains("paths.json: ") && error.contains(expected), "{error}");
        }
        std::fs::write(&file, vec![b' '; 2 << 20]).unwrap();
        assert!(Frequent::read(&file, 3).unwrap_err().to_string().contains("expected at most"));
        let error = Frequent::read(dir.path(), 3).unwrap_err().to_string();
        assert!(error.contains("a regular file"), "{error}");
    }
}
