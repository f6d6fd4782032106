//! The directory of models: `<name>/<version>/`, and a file `default` with the name of the default model.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use super::RegistryError;
use crate::text::shortened;

/// A version: a number as it prints, so that no two names are the same version.
pub(super) fn number(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| number.to_string() == name)
}

/// File of a directory of models that names the default model, and its bytes at most.
pub(super) const DEFAULT: &str = "default";
const MOST_DEFAULT: u64 = 4096;

/// What the file `default` of the directory says: the name of the model of requests that name none. None where there is
/// no such file.
///
/// # Errors
/// It cannot be read, or is longer than any name.
fn named_default(dir: &Path) -> Result<Option<String>, RegistryError> {
    let path = dir.join(DEFAULT);
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(MOST_DEFAULT + 1).read_to_end(&mut bytes))
        .map_err(|reason| RegistryError::Read { dir: path.clone(), reason })?;
    if bytes.len() as u64 > MOST_DEFAULT {
        return Err(RegistryError::LongDefault(path));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned()))
}

/// The model of requests that name none: `given`, else what the directory's file `default` says, else the only one of
/// `known`, else none.
///
/// # Errors
/// The file cannot be read, or the name is none of `known`.
pub(super) fn default_of(dir: &Path, given: Option<&str>, known: &[&str]) -> Result<Option<String>, RegistryError> {
    let named = match given {
        Some(name) => Some(name.to_owned()),
        None => named_default(dir)?,
    };
    match (named, known) {
        (Some(name), known) if !known.contains(&name.as_str()) => {
            Err(RegistryError::Default { name: shortened(&name), known: known.join(", ") })
        }
        (None, [only]) => Ok(Some((*only).to_owned())),
        (named, _) => Ok(named),
    }
}

/// Directory of the newest version of the default model of the repository `dir`: the one called `default`, or the one
/// that the directory's file `default` names, or the only one.
///
/// # Errors
/// There is none, or there are several and none is named.
pub fn default_bundle(dir: &Path, default: Option<&str>) -> Result<PathBuf, RegistryError> {
    let found = scan(dir)?;
    let mut names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
    names.dedup();
    let Some(name) = default_of(dir, default, &names)? else {
        return Err(RegistryError::Default { name: "(none named)".to_owned(), known: names.join(", ") });
    };
    let newest = found.iter().filter(|(model, ..)| *model == name).max_by_key(|(_, version, _)| *version);
    Ok(newest.expect("the name was found with a version").2.clone())
}

/// Every `<name>/<version>` below `dir`, by name and version. Hidden directories are passed over.
pub(super) fn scan(dir: &Path) -> Result<Vec<(String, u64, PathBuf)>, RegistryError> {
    let mut found = Vec::new();
    for model in subdirectories(dir)? {
        let versions = versions(&model)?;
        if versions.is_empty() {
            tracing::warn!(model = %model.display(), "passed over: it has no version, a directory with a number as name");
        }
        if let Some(name) = file_name(&model) {
            found.extend(versions.into_iter().map(|(version, path)| (name.to_owned(), version, path)));
        }
    }
    if found.is_empty() { Err(RegistryError::Empty(dir.to_path_buf())) } else { Ok(found) }
}

/// The name of every directory of a model below `dir`, with versions in it or without. Hidden ones are passed over.
pub(super) fn model_names(dir: &Path) -> Result<BTreeSet<String>, RegistryError> {
    let found: BTreeSet<String> =
        subdirectories(dir)?.iter().filter_map(|model| Some(file_name(model)?.to_owned())).collect();
    if found.is_empty() { Err(RegistryError::Empty(dir.to_path_buf())) } else { Ok(found) }
}

/// The directory of the model called `name`, if `dir` has one. What is no plain name leads nowhere.
pub(super) fn model_dir(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    Some(dir.join(name)).filter(|model| plain && !is_hidden(model) && model.is_dir())
}

/// The versions of the model in `dir`, oldest first.
pub(super) fn versions(dir: &Path) -> Result<Vec<(u64, PathBuf)>, RegistryError> {
    let failed = |reason| RegistryError::Read { dir: dir.to_path_buf(), reason };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let version = file_name(&path).and_then(number);
        match version {
            Some(version) if path.is_dir() => found.push((version, path)),
            // A model's directory may have a README beside its versions.
            None if is_hidden(&path) || !path.is_dir() => {}
            _ => tracing::warn!(path = %path.display(), "passed over: a version is a directory with a number as name"),
        }
    }
    found.sort();
    Ok(found)
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let failed = |reason| RegistryError::Read { dir: dir.to_path_buf(), reason };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() && !is_hidden(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_name_is_a_model() {
        let dir = tempfile::tempdir().unwrap();
        let models = dir.path().join("models");
        for name in ["net", ".hidden", "net/1"] {
            std::fs::create_dir_all(models.join(name)).unwrap();
        }
        assert_eq!(model_dir(&models, "net"), Some(models.join("net")));
        let absolute = models.join("net");
        for name in [
            "",
            ".",
            "..",
            "net/",
            "net/1",
            "../models",
            "./net",
            "/",
            ".hidden",
            "none",
            "n\0t",
            absolute.to_str().unwrap(),
        ] {
            assert_eq!(model_dir(&models, name), None, "{name:?}");
        }
    }
}
