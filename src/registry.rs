//! The models that are loaded: `models/<name>/<version>/`, all checked and warm before a request gets to them.
//!
//! A model may be loaded, replaced and unloaded while the server serves. A request goes on with the version that it was
//! given, whatever becomes of it meanwhile.

mod disk;
mod limits;
mod live;
mod retired;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

pub use disk::default_bundle;
pub use limits::{Bounds, MODEL_LIMIT, ModelFull, ModelLimit, ModelLimits, ModelsLimits, Share};
pub use live::{Change, ChangeError, Changes, Indexed};
use tokio::sync::watch;

use crate::bundle::{Bundle, BundleError, Frequent};
use crate::engine::{Backend, Engine, EngineError, Paths, Runtime, Target};
use crate::policy::Costs;
use crate::scheduler::{self, Pace};
use crate::telemetry::{Metrics, ModelMetrics, Statistics};
use crate::text::shortened;
use limits::BoundsByName;
use live::Reason;
use retired::Retired;

/// A loaded model: one version of one name.
pub struct Model {
    pub name: String,
    pub version: u64,
    pub engine: Engine,
    pub metrics: Arc<ModelMetrics>,
    /// Of this version, from the first model on that had its place.
    pub statistics: Arc<Statistics>,
    /// Of all versions together.
    pub bounds: Arc<Bounds>,
    /// What its images take.
    pub pace: Pace,
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

    fn max_batch(&self) -> usize {
        self.bounds.batch
    }

    fn pace(&self) -> &Pace {
        &self.pace
    }
}

/// The versions of a model, oldest first. There is at least one.
pub type Versions = BTreeMap<u64, Arc<Model>>;

/// Why a repository of models cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{}: cannot be read: {reason}", dir.display())]
    Read { dir: PathBuf, reason: std::io::Error },
    #[error("{}: no model found, expected <name>/<version>/bundle.json with a number as version", .0.display())]
    Empty(PathBuf),
    #[error("{}: no version found, expected <version>/bundle.json with a number as version", .0.display())]
    NoVersion(PathBuf),
    #[error("default model '{name}' not found, expected one of: {known}")]
    Default { name: String, known: String },
    #[error("{}: longer than the name of a model", .0.display())]
    LongDefault(PathBuf),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{}: {reason}", dir.display())]
    Engine { dir: PathBuf, reason: EngineError },
    #[error("--brownout: found {most}, expected more than {own}, the keep threshold of {}", dir.display())]
    Brownout { most: f64, own: f64, dir: PathBuf },
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
    pub target: Target,
    /// Threads that run models, and images that each runs at a time, at most.
    pub workers: usize,
    pub max_batch: usize,
    /// Where the compiled paths of all models live.
    pub paths: Arc<Paths>,
    /// Time for frequent paths to be compiled before requests get to a model.
    pub warm_up: Duration,
    /// Directory of the masks seen in earlier runs, `<name>/<version>.json`.
    pub profiles: Option<PathBuf>,
    /// The highest keep threshold under brownout, where there is any.
    pub brownout: Option<f64>,
    /// What each model may take.
    pub limits: ModelsLimits,
    /// Set to give up: looked at before each model is made.
    pub give_up: Arc<AtomicBool>,
}

/// All loaded models by name and version.
pub struct Registry {
    dir: PathBuf,
    /// Whether the default model is one that the caller named, whatever the directory says.
    default_given: bool,
    default: RwLock<Option<Arc<str>>>,
    loader: Loader,
    models: RwLock<BTreeMap<String, Arc<Versions>>>,
    /// Whether there is a model.
    any: watch::Sender<bool>,
    /// Why what is in the directory is not loaded, by name.
    reasons: Mutex<BTreeMap<String, Reason>>,
    /// Held while models change.
    changing: Arc<tokio::sync::Mutex<()>>,
    retired: Retired,
}

impl Registry {
    /// Loads every `<name>/<version>/` below `dir`. `default` is the model of requests that name none; without it, the
    /// one that the file `default` in `dir` names, and without that the only one, where there is only one.
    ///
    /// # Errors
    /// All that is wrong, at once: bundles that do not fit, graphs that ONNX Runtime refuses, a default that is not
    /// there; or loading was given up.
    pub fn load(
        dir: &Path,
        default: Option<&str>,
        runtime: &'static Runtime,
        options: &LoadOptions,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Vec<RegistryError>> {
        let mut errors = Vec::new();
        let mut bundles: BTreeMap<String, BTreeMap<u64, Bundle>> = BTreeMap::new();
        for (name, version, path) in disk::scan(dir).map_err(|error| vec![error])? {
            match Bundle::load(&path) {
                Ok(bundle) => drop(bundles.entry(name).or_default().insert(version, bundle)),
                Err(error) => errors.push(error.into()),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let known: Vec<&str> = bundles.keys().map(String::as_str).collect();
        let chosen = disk::default_of(dir, default, &known).map_err(|error| vec![error])?;

        let bounds = BoundsByName::new(options.limits.clone());
        for name in bounds.unused(|name| bundles.contains_key(name)) {
            tracing::warn!(model = name, "--model-limit: there is no model of that name");
        }
        let loader = Loader { runtime, options: options.clone(), metrics: Arc::clone(metrics), bounds };
        let mut models = BTreeMap::new();
        for (name, bundles) in bundles {
            match loader.make(&name, bundles, &Versions::new()) {
                Ok(made) => drop(models.insert(name, Arc::new(made))),
                Err(refused) if matches!(refused.as_slice(), [RegistryError::GivenUp]) => return Err(refused),
                Err(refused) => errors.extend(refused),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        loader.settle();
        for versions in models.values() {
            newest(versions).metrics.set_ready(true);
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            default_given: default.is_some(),
            default: RwLock::new(chosen.map(Arc::from)),
            loader,
            any: watch::Sender::new(!models.is_empty()),
            models: RwLock::new(models),
            reasons: Mutex::default(),
            changing: Arc::default(),
            retired: Retired::default(),
        })
    }

    fn models(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Versions>>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model of a request: the default where it names none, the newest version where it names none.
    ///
    /// # Errors
    /// There is no such model or version.
    pub fn get(&self, name: Option<&str>, version: Option<&str>) -> Result<Arc<Model>, Unknown> {
        let models = self.models();
        let default = if name.is_none() { self.default() } else { None };
        let name = name.or(default.as_deref()).ok_or_else(|| Unknown::Unnamed { known: names(models.keys()) })?;
        let versions =
            models.get(name).ok_or_else(|| Unknown::Name { name: shortened(name), known: names(models.keys()) })?;
        let model = match version {
            None => newest(versions),
            Some(version) => {
                disk::number(version).and_then(|number| versions.get(&number)).ok_or_else(|| Unknown::Version {
                    name: name.to_owned(),
                    version: shortened(version),
                    known: versions.keys().map(u64::to_string).collect::<Vec<_>>().join(", "),
                })?
            }
        };
        Ok(Arc::clone(model))
    }

    /// The versions of the model called `name`, as they are now.
    pub fn versions(&self, name: &str) -> Option<Arc<Versions>> {
        self.models().get(name).cloned()
    }

    /// The newest version of each model, by name, as they are now.
    pub fn newest(&self) -> Vec<Arc<Model>> {
        self.models().values().map(|versions| Arc::clone(newest(versions))).collect()
    }

    /// Every version of every model, by name and version, as they are now.
    pub fn all(&self) -> Vec<Arc<Model>> {
        self.models().values().flat_map(|versions| versions.values()).cloned().collect()
    }

    /// Whether any model is loaded, as it is and as it changes.
    pub fn any(&self) -> watch::Receiver<bool> {
        self.any.subscribe()
    }

    /// The model of requests that name none.
    fn default(&self) -> Option<Arc<str>> {
        self.default.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether requests that name no model go to the one called `name`, while it is loaded.
    pub fn is_default(&self, name: &str) -> bool {
        self.default().as_deref() == Some(name)
    }

    /// Writes the masks that each model's images had to `<name>/<version>.json` in the directory of profiles, where there
    /// is one. A model that saw none keeps the file that it has.
    pub fn save_profiles(&self) {
        self.all().iter().for_each(|model| self.loader.save_profile(model));
    }
}

fn newest(versions: &Versions) -> &Arc<Model> {
    versions.last_key_value().expect("a model has at least one version").1
}

/// Names of models, for a message.
fn names<'n>(names: impl Iterator<Item = &'n String>) -> String {
    let names = names.map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.is_empty() { "(none is there)".to_owned() } else { names }
}

/// Makes models of bundles.
struct Loader {
    runtime: &'static Runtime,
    options: LoadOptions,
    metrics: Arc<Metrics>,
    bounds: BoundsByName,
}

impl Loader {
    /// The models of `bundles`, all versions of one name, that take the place of those in `before`.
    ///
    /// # Errors
    /// All that is wrong with them; nothing is made then. Or loading was given up.
    fn make(
        &self,
        name: &str,
        bundles: BTreeMap<u64, Bundle>,
        before: &Versions,
    ) -> Result<Versions, Vec<RegistryError>> {
        let blocks = bundles.values().map(|bundle| bundle.blocks.len()).max().unwrap_or(0);
        let metrics = self.metrics.model(name, blocks);
        let (mut made, mut errors) = (Versions::new(), Vec::new());
        for (version, bundle) in bundles {
            if self.options.give_up.load(Ordering::Relaxed) {
                errors = vec![RegistryError::GivenUp];
                break;
            }
            match self.make_one(name, version, bundle, &metrics, before.get(&version)) {
                Ok(model) => drop(made.insert(version, Arc::new(model))),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            return Ok(made);
        }
        made.into_values().filter_map(Arc::into_inner).for_each(|model| model.engine.end());
        Err(errors)
    }

    fn make_one(
        &self,
        name: &str,
        version: u64,
        bundle: Bundle,
        metrics: &Arc<ModelMetrics>,
        before: Option<&Arc<Model>>,
    ) -> Result<Model, RegistryError> {
        let LoadOptions { target, workers, max_batch, paths, .. } = &self.options;
        let (started, dir) = (Instant::now(), bundle.dir.clone());
        let own = bundle.manifest.policy.threshold;
        if let Some(most) = self.options.brownout.filter(|most| *most <= own) {
            return Err(RegistryError::Brownout { most, own, dir });
        }
        let (paths, counts) = (Arc::clone(paths), metrics.paths.clone());
        let engine = Engine::new(Arc::new(bundle), self.runtime, *target, *workers, paths, counts)
            .map_err(|reason| RegistryError::Engine { dir, reason })?;
        engine
            .prepare(*max_batch)
            .map_err(|reason| RegistryError::Engine { dir: engine.bundle().dir.clone(), reason })?;
        if let Err(error) = engine.measure(*max_batch) {
            tracing::warn!(model = name, version, %error, "images of different masks never run together");
        }
        engine.warm(&self.profile(name, version, &engine, before), *max_batch);
        tracing::info!(
            model = name,
            version,
            blocks = engine.costs().blocks.len(),
            provider = %engine.provider(),
            seconds = started.elapsed().as_secs_f64(),
            "model loaded"
        );
        let (name, metrics) = (name.to_owned(), Arc::clone(metrics));
        let statistics = before.map(|model| Arc::clone(&model.statistics)).unwrap_or_default();
        let bounds = self.bounds.of(&name);
        Ok(Model { name, version, engine, metrics, statistics, bounds, pace: Pace::default() })
    }

    /// Waits for frequent paths.
    fn settle(&self) {
        self.options.paths.settle(self.options.warm_up);
    }

    /// The masks to expect: those that the model in whose place it comes has seen, or those of earlier runs.
    fn profile(&self, name: &str, version: u64, engine: &Engine, before: Option<&Arc<Model>>) -> Frequent {
        let blocks = engine.costs().blocks.len();
        let before = before.filter(|model| model.engine.costs().blocks.len() == blocks);
        let seen = before.map(|model| model.engine.frequent()).filter(|seen| !seen.0.is_empty());
        let saved = || {
            let file = profile_file(self.options.profiles.as_deref()?, name, version);
            Frequent::read(&file, blocks)
                .inspect_err(|error| tracing::warn!(%error, "passed over: no file of the masks seen"))
                .ok()
                .flatten()
        };
        seen.or_else(saved).unwrap_or_default()
    }

    fn save_profile(&self, model: &Model) {
        let Some(dir) = self.options.profiles.as_deref() else { return };
        let frequent = model.engine.frequent();
        if !frequent.0.is_empty()
            && let Err(error) = frequent.write(&profile_file(dir, &model.name, model.version))
        {
            tracing::warn!(%error, "the masks seen cannot be saved");
        }
    }
}

fn profile_file(dir: &Path, name: &str, version: u64) -> PathBuf {
    dir.join(name).join(format!("{version}.json"))
}
