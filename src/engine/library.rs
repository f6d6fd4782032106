//! Whether a library is there as a whole: one that was cut short would kill the process that loads it, by a signal.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// A library that is not to be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damaged {
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("found {found} bytes, expected at least {expected}: it is not whole")]
    Cut { found: u64, expected: u64 },
}

/// Checks that the file can be read, and where it is an ELF library of 64 bits, that it has all the bytes that are to be
/// mapped of it. What else it may be is for the loader to say.
pub(super) fn check(path: &Path) -> Result<(), Damaged> {
    let mut file = File::open(path)?;
    let (found, mut head) = (file.metadata()?.len(), [0; 64]);
    if file.read_exact(&mut head).is_err() || !head.starts_with(b"\x7fELF\x02\x01") {
        return Ok(());
    }
    let (table, each, count) = (number(&head[32..40]), number(&head[54..56]), number(&head[56..58]));
    for index in 0..count {
        let (at, mut segment) = (table.saturating_add(index * each), [0; 40]);
        file.seek(SeekFrom::Start(at))?;
        if file.read_exact(&mut segment).is_err() {
            return Err(Damaged::Cut { found, expected: at.saturating_add(each) });
        }
        const LOAD: u64 = 1;
        let expected = number(&segment[8..16]).saturating_add(number(&segment[32..40]));
        if number(&segment[..4]) == LOAD && expected > found {
            return Err(Damaged::Cut { found, expected });
        }
    }
    Ok(())
}

/// A number of up to eight bytes, the lowest first.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_whole_until_it_is_cut() {
        let path = std::env::var_os("ORT_DYLIB_PATH").unwrap();
        check(Path::new(&path)).unwrap();
        let bytes = std::fs::read(path).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let cut = dir.path().join("libcut.so");
        for length in [0, 10, 63] {
            std::fs::write(&cut, &bytes[..length]).unwrap();
            check(&cut).unwrap(); // too short to say what it is
        }
        if !cfg!(target_os = "linux") {
            return; // no ELF
        }
        for length in [64, 100, 5000, bytes.len() / 2] {
            std::fs::write(&cut, &bytes[..length]).unwrap();
            let said = check(&cut).unwrap_err().to_string();
            assert!(said.starts_with(&format!("found {length} bytes, expected at least ")), "{said}");
        }
        assert!(matches!(check(&dir.path().join("none")), Err(Damaged::Read(_))));
    }

    #[test]
    fn nonsense_in_the_headers_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lib.so");
        let mut bytes = vec![0xff; 4096];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        std::fs::write(&file, &bytes).unwrap();
        assert!(check(&file).is_err());
    }
}
