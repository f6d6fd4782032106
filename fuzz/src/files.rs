//! Files that operators write, and those that the server writes for itself.

use std::cell::RefCell;

use blockdrop::bundle::{Frequent, MOST_FREQUENT};
use blockdrop::server::Keys;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use tempfile::TempDir;

use crate::{Outcome, Refused, Taken, check_message};

thread_local! {
    static DIR: RefCell<TempDir> = RefCell::new(tempfile::tempdir().expect("a directory"));
}

const BLOCKS: usize = 3;

/// `input` is a file of frequent masks.
pub(crate) fn frequent(input: &[u8]) -> Outcome {
    DIR.with_borrow(|dir| {
        let file = dir.path().join("paths.json");
        std::fs::write(&file, input).expect("a file can be written");
        match Frequent::read(&file, BLOCKS) {
            Err(error) => {
                let message = error.to_string();
                assert!(message.starts_with(&format!("{}: ", file.display())), "it names no file: {message}");
                check_message(&message);
                Refused
            }
            Ok(found) => {
                let frequent = found.expect("the file is there");
                assert!(frequent.0.len() <= MOST_FREQUENT);
                assert!(frequent.0.iter().all(|(mask, share)| mask.len() == BLOCKS && (0.0..=1.0).contains(share)));
                assert!(frequent.0.windows(2).all(|pair| pair[0].1 >= pair[1].1 && pair[0].0 != pair[1].0));
                frequent.write(&file).expect("a file can be written");
                assert_eq!(Frequent::read(&file, BLOCKS).expect("it reads what it writes"), Some(frequent));
                Taken
            }
        }
    })
}

/// `input` is a file of keys, and what the environment holds.
pub(crate) fn keys(input: &[u8]) -> Outcome {
    let listed = Keys::read(None, Some(input));
    let file = DIR.with_borrow(|dir| {
        let file = dir.path().join("keys");
        std::fs::write(&file, input).expect("a file can be written");
        Keys::read(Some(&file), None)
    });
    let lines = input.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let lines: Vec<&[u8]> = lines.filter(|line| !line.starts_with(b"#")).collect();
    check_keys(&file, &lines);
    let parts: Vec<&[u8]> = if input.is_empty() { Vec::new() } else { input.split(|&byte| byte == b',').collect() };
    check_keys(&listed, &parts);
    if file.is_ok() || listed.is_ok_and(|keys| keys.count() > 0) { Taken } else { Refused }
}

fn lets_in(keys: &Keys, key: &[u8]) -> bool {
    let authorization = HeaderValue::from_bytes(&[b"Bearer ", key].concat()).expect("visible characters");
    keys.check(&HeaderMap::from_iter([(AUTHORIZATION, authorization)])).is_ok()
}

/// Of `found` every one lets in, and nothing else of it does; what is wrong is not quoted.
fn check_keys(keys: &Result<Keys, Vec<blockdrop::server::KeysError>>, found: &[&[u8]]) {
    let found: Vec<&[u8]> = found.iter().copied().filter(|key| !key.trim_ascii().is_empty()).collect();
    match keys {
        Ok(keys) => {
            assert_eq!(keys.count(), found.len());
            for &key in &found {
                assert!(key.len() >= 16 && key.iter().all(u8::is_ascii_graphic));
                assert!(lets_in(keys, key), "a key that does not let in");
                let shorter = &key[1..];
                assert!(!lets_in(keys, shorter) || found.contains(&shorter), "a shorter key lets in");
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                check_message(&error.to_string());
            }
        }
    }
}
