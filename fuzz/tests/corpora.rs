//! Every corpus runs through its target, so that what was found once stays found without a fuzzer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use blockdrop_fuzz::{Outcome, TARGETS};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn names(name: &str) -> BTreeSet<String> {
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    fs::read_dir(dir(name)).unwrap().map(|entry| stem(entry.unwrap().path())).collect()
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<_> =
        fs::read_dir(dir("corpus").join(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn every_target_has_its_corpus_and_its_binary() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    let manifest = fs::read_to_string(dir("Cargo.toml")).unwrap();
    for target in &targets {
        let called = fs::read_to_string(dir("fuzz_targets").join(format!("{target}.rs"))).unwrap();
        assert!(called.contains(&format!("run(\"{target}\", input)")), "{called}");
        assert!(manifest.contains(&format!("name = \"{target}\"\npath = \"fuzz_targets/{target}.rs\"\n")), "{target}");
    }
    for dictionary in names("dictionaries") {
        assert!(targets.contains(&dictionary), "{dictionary}.dict is of no target");
    }
}

#[test]
fn corpora_find_nothing_and_hold_what_is_taken_and_what_is_refused() {
    for (name, target) in TARGETS {
        let mut outcomes = Vec::new();
        for (path, input) in corpus(name) {
            let outcome = std::panic::catch_unwind(|| target(&input));
            outcomes.push(outcome.unwrap_or_else(|_| panic!("found something: {}", path.display())));
        }
        for outcome in [Outcome::Taken, Outcome::Refused] {
            assert!(outcomes.contains(&outcome), "no input of {name} is {outcome:?}");
        }
    }
}

#[test]
fn damaged_corpora_find_nothing() {
    const DAMAGES: usize = 8;
    let mut generator = ChaCha8Rng::seed_from_u64(1);
    for (name, target) in TARGETS {
        for (path, input) in corpus(name).into_iter().filter(|(_, input)| !input.is_empty()) {
            for _ in 0..DAMAGES {
                let mut damaged = input.clone();
                let at = generator.random_range(0..damaged.len());
                match generator.random_range(0..3) {
                    0 => damaged[at] = generator.random(),
                    1 => damaged.truncate(at),
                    _ => drop(damaged.splice(at..at, input[at / 2..at].iter().copied())),
                }
                let outcome = std::panic::catch_unwind(|| target(&damaged));
                outcome.unwrap_or_else(|_| panic!("found something: {} as {damaged:?}", path.display()));
            }
        }
    }
}

#[test]
fn corpora_are_small() {
    for (name, _) in TARGETS {
        let corpus = corpus(name);
        let bytes: usize = corpus.iter().map(|(_, input)| input.len()).sum();
        assert!(
            bytes <= 128 << 10,
            "the corpus of {name} has {bytes} bytes, expected at most 128 KiB (scripts/fuzz_corpus.py)"
        );
    }
}
