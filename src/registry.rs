//! The models that are loaded: `models/<name>/<version>/`, all checked and warm before the first request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bundle::{Bundle, BundleError, Frequent};
use crate::engine::{Backend, Engine, EngineError, Paths, Provider, Runtime};
use crate::policy::Costs;
use crate::scheduler;
use crate::telemetry::{Metrics, ModelMetrics, Statistics};
use crate::text::shortened;

/// A loaded model: one version of one name.
pub struct Model {
    pub name: String,
    pub version: u64,
    pub engine: Engine,
    pub metrics: Arc<ModelMetrics>,
    pub statistics: Statistics,
}

impl scheduler::Model for Model {
    fn backend(&self) -> &dyn Backend {
        &self.engine
    }

    fn costs(&self) -> &Costs {
        self.engine.costs()
    }

    fn metrics(&self) -> &ModelMetrics {
        &self.metrics
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }
}

/// Why a repository of models cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{}: cannot be read: {reason}", dir.display())]
    Read { dir: PathBuf, reason: std::io::Error },
    #[error("{}: no model found, expected <name>/<version>/bundle.json with a number as version", .0.display())]
    Empty(PathBuf),
    #[error("default model '{name}' not found, expected one of: {known}")]
    Default { name: String, known: String },
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{}: {reason}", dir.display())]
    Engine { dir: PathBuf, reason: EngineError },
    #[error("loading was given up")]
    GivenUp,
}

/// A request for a model that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    #[error("model: none named and no default, expected one of: {known}")]
    Unnamed { known: String },
    #[error("model '{name}' not found, expected one of: {known}")]
    Name { name: String, known: String },
    #[error("version '{version}' of model '{name}' not found, expected one of: {known}")]
    Version { name: String, version: String, known: String },
}

/// How models are made ready.
#[derive(Clone)]
pub struct LoadOptions {
    pub provider: Provider,
    /// Threads that run models.
    pub workers: usize,
    /// Where the compiled paths of all models live.
    pub paths: Arc<Paths>,
    /// Directory of the masks seen in earlier runs, `<name>/<version>.json`.
    pub profiles: Option<PathBuf>,
    /// Set to give up: looked at before each model is made.
    pub give_up: Arc<AtomicBool>,
}

/// All loaded models by name and version.
pub struct Registry {
    models: BTreeMap<String, BTreeMap<u64, Arc<Model>>>,
    default: Option<String>,
}

impl Registry {
    /// Loads every `<name>/<version>/` below `dir`. `default` is the model of requests that name none; where there is
    /// only one model, it is that one.
    ///
    /// # Errors
    /// All that is wrong, at once: bundles that do not fit, graphs that ONNX Runtime refuses, a default that is not
    /// there; or loading was given up.
    pub fn load(
        dir: &Path,
        default: Option<&str>,
        runtime: &'static Runtime,
        options: &LoadOptions,
        metrics: &Metrics,
    ) -> Result<Self, Vec<RegistryError>> {
        let found = scan(dir).map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        let mut bundles: BTreeMap<String, BTreeMap<u64, Arc<Bundle>>> = BTreeMap::new();
        for (name, version, path) in found {
            match Bundle::load(&path) {
                Ok(bundle) => drop(bundles.entry(name).or_default().insert(version, Arc::new(bundle))),
                Err(error) => errors.push(error.into()),
            }
        }
        let known = || bundles.keys().cloned().collect::<Vec<_>>().join(", ");
        let default = match default {
            Some(name) if !bundles.contains_key(name) && errors.is_empty() => {
                errors.push(RegistryError::Default { name: name.to_owned(), known: known() });
                None
            }
            Some(name) => Some(name.to_owned()),
            None if bundles.len() == 1 => bundles.keys().next().cloned(),
            None => None,
        };
        if !errors.is_empty() {
            return Err(errors);
        }

        let mut models: BTreeMap<String, BTreeMap<u64, Arc<Model>>> = BTreeMap::new();
        for (name, versions) in bundles {
            let blocks = versions.values().map(|bundle| bundle.blocks.len()).max().unwrap_or(0);
            let metrics = metrics.model(&name, blocks);
            for (version, bundle) in versions {
                let started = std::time::Instant::now();
                if options.give_up.load(Ordering::Relaxed) {
                    return Err(vec![RegistryError::GivenUp]);
                }
                let dir = bundle.dir.clone();
                let (paths, counts) = (Arc::clone(&options.paths), metrics.paths.clone());
                let engine = match Engine::new(bundle, runtime, options.provider, options.workers, paths, counts) {
                    Ok(engine) => engine,
                    Err(reason) => {
                        errors.push(RegistryError::Engine { dir, reason });
                        continue;
                    }
                };
                let profile = options.profiles.as_deref().and_then(|dir| read_profile(dir, &name, version, &engine));
                engine.warm(&profile.unwrap_or_default());
                tracing::info!(
                    model = name,
                    version,
                    blocks = engine.costs().blocks.len(),
                    provider = %engine.provider(),
                    seconds = started.elapsed().as_secs_f64(),
                    "model loaded"
                );
                let metrics = Arc::clone(&metrics);
                let model = Model { name: name.clone(), version, engine, metrics, statistics: Statistics::default() };
                models.entry(name.clone()).or_default().insert(version, Arc::new(model));
            }
            metrics.set_ready(true);
        }
        if errors.is_empty() { Ok(Self { models, default }) } else { Err(errors) }
    }

    /// The model of a request: the default where it names none, the newest version where it names none.
    ///
    /// # Errors
    /// There is no such model or version.
    pub fn get(&self, name: Option<&str>, version: Option<&str>) -> Result<&Arc<Model>, Unknown> {
        let known = || self.models.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let name = name.or(self.default.as_deref()).ok_or_else(|| Unknown::Unnamed { known: known() })?;
        let versions = self.versions(name).ok_or_else(|| Unknown::Name { name: shortened(name), known: known() })?;
        match version {
            None => Ok(versions.last_key_value().expect("a model has at least one version").1),
            Some(version) => number(version).and_then(|number| versions.get(&number)).ok_or_else(|| Unknown::Version {
                name: name.to_owned(),
                version: shortened(version),
                known: versions.keys().map(u64::to_string).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The versions of the model called `name`, oldest first.
    pub fn versions(&self, name: &str) -> Option<&BTreeMap<u64, Arc<Model>>> {
        self.models.get(name)
    }

    /// Writes the masks that each model's images had to `<dir>/<name>/<version>.json`. A model that saw none keeps the
    /// file that it has.
    pub fn save_profiles(&self, dir: &Path) {
        for model in self.all() {
            let (frequent, file) = (model.engine.frequent(), profile_file(dir, &model.name, model.version));
            if !frequent.0.is_empty()
                && let Err(error) = frequent.write(&file)
            {
                tracing::warn!(%error, "the masks seen cannot be saved");
            }
        }
    }

    /// The newest version of each model, by name.
    pub fn newest(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.values().filter_map(|versions| versions.last_key_value()).map(|(_, model)| model)
    }

    /// Every version of every model, by name and version.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.values().flat_map(BTreeMap::values)
    }

    /// Whether requests that name no model go to the one called `name`.
    pub fn is_default(&self, name: &str) -> bool {
        self.default.as_deref() == Some(name)
    }
}

fn profile_file(dir: &Path, name: &str, version: u64) -> PathBuf {
    dir.join(name).join(format!("{version}.json"))
}

/// The masks that an earlier run saw; a file that does not fit is passed over.
fn read_profile(dir: &Path, name: &str, version: u64, engine: &Engine) -> Option<Frequent> {
    Frequent::read(&profile_file(dir, name, version), engine.costs().blocks.len())
        .inspect_err(|error| tracing::warn!(%error, "passed over: no file of the masks seen"))
        .ok()
        .flatten()
}

/// A version: a number as it prints, so that no two names are the same version.
fn number(name: &str) -> Option<u64> {
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
fn scan(dir: &Path) -> Result<Vec<(String, u64, PathBuf)>, RegistryError> {
    let mut found = Vec::new();
    for model in subdirectories(dir)? {
        let mut versions = 0;
        for version in subdirectories(&model)? {
            let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            if let (Some(name), Some(number)) = (name(&model), name(&version).and_then(|name| number(&name))) {
                found.push((name, number, version));
                versions += 1;
            }
        }
        if versions == 0 {
            tracing::warn!(model = %model.display(), "passed over: it has no version, a directory with a number as name");
        }
    }
    if found.is_empty() { Err(RegistryError::Empty(dir.to_path_buf())) } else { Ok(found) }
}

fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let failed = |reason| RegistryError::Read { dir: dir.to_path_buf(), reason };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !hidden {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
