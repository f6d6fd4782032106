//! Bundles: any `bundle.json`, and files that are no longer what they were.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use blockdrop::bundle::{Bundle, fuzzing, join, mix, sha256_hex};
use blockdrop::policy::Mask;
use blockdrop_testkit::{Kind, Net, Shortcut};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Outcome, Refused, Taken, check_message};

/// A net in few bytes, with both a block that needs no shortcut and one that has one.
pub(crate) fn net() -> Net {
    Net {
        seed: 1,
        kind: Kind::Basic,
        shortcut: Shortcut::Pooled,
        segments: vec![1, 2],
        width: 2,
        side: 4,
        classes: 3,
        traps: false,
    }
}

const MANIFEST: &str = "bundle.json";

/// A bundle's directory, and its files as they were made.
struct Made {
    dir: TempDir,
    files: BTreeMap<String, Vec<u8>>,
}

impl Made {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        net().write(dir.path()).expect("a bundle");
        let manifest = std::fs::read(dir.path().join(MANIFEST)).expect("a manifest");
        let mut files = BTreeMap::from([(MANIFEST.to_owned(), manifest)]);
        let manifest: Value = serde_json::from_slice(&files[MANIFEST]).expect("JSON");
        each_file(&manifest, &mut |name, _| {
            files.insert(name.to_owned(), std::fs::read(dir.path().join(name)).expect("a file of the bundle"));
        });
        Self { dir, files }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join(name), bytes).expect("a file can be written");
    }

    fn restore(&self, name: &str) {
        self.write(name, &self.files[name]);
    }

    fn load(&self) -> Outcome {
        let dir = self.dir.path();
        match Bundle::load(dir) {
            Ok(bundle) => {
                check(&bundle);
                Taken
            }
            Err(error) => {
                let message = error.to_string();
                assert!(message.starts_with(&format!("{}/", dir.display())), "it names no file: {message}");
                check_message(&message);
                Refused
            }
        }
    }
}

thread_local! {
    static MADE: RefCell<Made> = RefCell::new(Made::new());
}

/// Calls `take` with the name and the hash of each file that a manifest names.
fn each_file(manifest: &Value, take: &mut impl FnMut(&str, &str)) {
    if let (Some(name), Some(sha256)) = (manifest["file"].as_str(), manifest["sha256"].as_str()) {
        take(name, sha256);
    }
    match manifest {
        Value::Object(members) => members.values().for_each(|value| each_file(value, take)),
        Value::Array(list) => list.iter().for_each(|value| each_file(value, take)),
        _ => {}
    }
}

/// What a bundle that was taken promises.
fn check(bundle: &Bundle) {
    let blocks = bundle.blocks.len();
    assert!(blocks > 0 && bundle.labels.len() == bundle.manifest.classes);
    assert_eq!(bundle.manifest.blocks(), blocks);
    assert!(bundle.is_current(), "its files are those that were read");
    let costs = bundle.costs();
    assert_eq!((costs.policy, costs.full()), (bundle.manifest.flops.policy, bundle.manifest.flops.full));
    for mask in [Mask::full(blocks), Mask::from_fn(blocks, |_| false), Mask::from_fn(blocks, |block| block % 2 == 0)] {
        let parts = bundle.path(&mask);
        assert_eq!(parts.iter().map(|part| part.flops).sum::<u64>(), costs.executed(&mask));
        crate::join::check(&parts, &join(&parts).expect("the parts of a path"));
    }
    let mixed = mix(bundle).expect("the parts of a path");
    crate::join::once(mixed.graph.as_ref().expect("a graph"));
}

/// `input` is the `bundle.json` beside the files of a bundle.
pub(crate) fn manifest(input: &[u8]) -> Outcome {
    match fuzzing::manifest(Path::new(MANIFEST), input) {
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("bundle.json: "), "it names no file: {message}");
            check_message(&message);
            Refused
        }
        Ok(manifest) => {
            let again = serde_json::to_vec(&manifest).expect("JSON");
            let again = fuzzing::manifest(Path::new(MANIFEST), &again).expect("it reads what it writes");
            assert_eq!(json!(again), json!(manifest));
            MADE.with_borrow(|made| {
                made.write(MANIFEST, input);
                made.load()
            })
        }
    }
}

/// Something done to a file.
#[derive(Debug, Arbitrary)]
enum Edit<'a> {
    Set {
        at: u16,
        byte: u8,
    },
    Insert {
        at: u16,
        bytes: &'a [u8],
    },
    Remove {
        at: u16,
        length: u8,
    },
    Replace {
        by: u8,
    },
    Cut {
        at: u16,
    },
    Delete,
    /// Its hash stays what it was.
    Stale,
}

impl Edit<'_> {
    fn apply(&self, made: &Made, bytes: &mut Vec<u8>) {
        let place = |at: u16| usize::from(at).min(bytes.len());
        match *self {
            Self::Set { at, byte } => {
                if let Some(there) = bytes.get_mut(usize::from(at)) {
                    *there = byte;
                }
            }
            Self::Insert { at, bytes: more } => drop(bytes.splice(place(at)..place(at), more.iter().copied())),
            Self::Remove { at, length } => {
                let at = place(at);
                let end = (at + usize::from(length)).min(bytes.len());
                bytes.drain(at..end);
            }
            Self::Replace { by } => {
                *bytes = made.files.values().nth(usize::from(by) % made.files.len()).expect("a file").clone();
            }
            Self::Cut { at } => bytes.truncate(usize::from(at)),
            Self::Delete | Self::Stale => {}
        }
    }
}

/// `input` is what is done to the files of a bundle, whose hashes then are put right.
pub(crate) fn files(input: &[u8]) -> Outcome {
    let edits: Vec<(u8, Edit<'_>)> = Arbitrary::arbitrary_take_rest(Unstructured::new(input)).unwrap_or_default();
    MADE.with_borrow(|made| {
        let mut now = BTreeMap::new();
        let (mut stale, mut deleted) = (Vec::new(), Vec::new());
        for (file, edit) in edits.iter().take(8) {
            let name = made.files.keys().nth(usize::from(*file) % made.files.len()).expect("a file").as_str();
            match edit {
                Edit::Stale => stale.push(name),
                Edit::Delete => deleted.push(name),
                _ => edit.apply(made, now.entry(name).or_insert_with(|| made.files[name].clone())),
            }
        }
        let mut manifest = String::from_utf8_lossy(&made.files[MANIFEST]).into_owned();
        for (name, bytes) in &now {
            made.write(name, bytes);
            if !stale.contains(name) {
                manifest = manifest.replace(&sha256_hex(&made.files[*name]), &sha256_hex(bytes));
            }
        }
        if !now.contains_key(MANIFEST) {
            made.write(MANIFEST, manifest.as_bytes());
        }
        for name in &deleted {
            // It may be there twice.
            let _ = std::fs::remove_file(made.dir.path().join(name));
        }
        let outcome = made.load();
        now.keys().chain(&deleted).chain(&[MANIFEST]).for_each(|name| made.restore(name));
        outcome
    })
}
