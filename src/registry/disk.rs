//! The directory of models: `<name>/<version>/`.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::RegistryError;

/// A version: a number as it prints, so that no two names are the same version.
pub(super) fn number(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| number.to_string() == name)
}

/// Directory of the newest version of the default model of the repository `dir`: the one called `default`, or the only
/// one.
///
/// # Errors
/// There is none, or there are several and none is named.
pub fn default_bundle(dir: &Path, default: Option<&str>) -> Result<PathBuf, RegistryError> {
    let found = scan(dir)?;
    let mut names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
    names.dedup();
    let name = match (default, names.as_slice()) {
        (Some(name), names) if names.contains(&name) => name,
        (None, [only]) => only,
        (name, names) => {
            let name = name.unwrap_or("(none named)").to_owned();
            return Err(RegistryError::Default { name, known: names.join(", ") });
        }
    };
    let newest = found.iter().filter(|(model, ..)| model == name).max_by_key(|(_, version, _)| *version);
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
