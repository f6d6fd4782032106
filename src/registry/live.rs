//! Loading, replacing and unloading models while the server serves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::{Model, Registry, RegistryError, Unknown, Versions, disk, names, newest};
use crate::bundle::Bundle;
use crate::telemetry::request::carried;
use crate::text::shortened;

/// What became of the versions of a model, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub name: String,
    /// New, or in the place of one that changed on disk.
    pub loaded: Vec<String>,
    /// As they were: what is on disk is what runs.
    pub kept: Vec<String>,
    /// No longer there for new requests.
    pub unloaded: Vec<String>,
}

/// What became of all models.
#[derive(Debug)]
pub struct Changes {
    /// By name.
    pub changed: Vec<Change>,
    /// Models that were not changed, by name.
    pub refused: Vec<(String, ChangeError)>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<RegistryError>),
    #[error("the server is shutting down")]
    Stopping,
    #[error("it ended in a panic")]
    Lost,
}

impl From<RegistryError> for ChangeError {
    fn from(error: RegistryError) -> Self {
        Self::Refused(vec![error])
    }
}

/// A version of a model, as the index of the repository has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = IndexEntry)]
pub struct Indexed {
    pub name: String,
    pub version: String,
    /// `READY` or `UNAVAILABLE`
    pub state: &'static str,
    /// Why it is unavailable, or why what is on disk of its model is not served in its place.
    pub reason: String,
}

/// Why a model that is in the directory is not loaded as it is there.
#[derive(Debug, Clone)]
pub(super) enum Reason {
    /// By hand.
    Unloaded,
    Refused(String),
}

impl Indexed {
    fn ready(model: &Model) -> Self {
        let (name, version) = (model.name.clone(), model.version.to_string());
        Self { name, version, state: "READY", reason: String::new() }
    }
}

impl Registry {
    /// Makes what is in the model's directory what is served: versions that are new or changed are checked, made and
    /// warmed, then all versions of the model change in one step. Changes come one after another.
    ///
    /// # Errors
    /// There is no such directory, a version in it cannot be loaded, or the server is stopping; what was served is served
    /// on then.
    pub async fn reload(self: &Arc<Self>, name: &str) -> Result<Change, ChangeError> {
        let name = name.to_owned();
        self.change(move |registry| registry.reload_now(&name)).await
    }

    /// Makes what is in the directory of models what is served, each model for itself, as [`reload`](Self::reload) does:
    /// one that is refused is served on as it was and keeps no other from changing. Models whose directory is gone are
    /// unloaded. What was unloaded by hand stays so.
    ///
    /// # Errors
    /// The directory cannot be read or has no model in it, as while it is not mounted, or the server is stopping; all that
    /// was served is served on then.
    pub async fn reload_all(self: &Arc<Self>) -> Result<Changes, ChangeError> {
        self.change(Self::reload_all_now).await
    }

    /// Takes a model away from new requests. Its sessions and compiled paths go once the requests that have it are
    /// answered.
    ///
    /// # Errors
    /// It is not loaded, or the server is stopping.
    pub async fn unload(self: &Arc<Self>, name: &str) -> Result<Change, ChangeError> {
        let name = name.to_owned();
        self.change(move |registry| registry.unload_now(&name)).await
    }

    /// Runs `change` on a thread that may block. It runs to its end though nobody waits for it.
    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&Self) -> Result<T, ChangeError> + Send + 'static,
    ) -> Result<T, ChangeError> {
        let turn = Arc::clone(&self.changing).lock_owned().await;
        let registry = Arc::clone(self);
        let changed = tokio::task::spawn_blocking(carried(move || {
            let _turn = turn;
            if registry.gives_up() {
                return Err(ChangeError::Stopping);
            }
            change(&registry)
        }));
        changed.await.unwrap_or(Err(ChangeError::Lost))
    }

    fn gives_up(&self) -> bool {
        self.loader.options.give_up.load(Ordering::Relaxed)
    }

    fn reload_now(&self, name: &str) -> Result<Change, ChangeError> {
        let reloaded = self.read_anew(name).map_err(|refused| match refused {
            ChangeError::Refused(errors) if matches!(errors.as_slice(), [RegistryError::GivenUp]) => {
                ChangeError::Stopping
            }
            refused => refused,
        });
        match &reloaded {
            Ok(change) => {
                self.reasons().remove(name);
                let Change { loaded, kept, unloaded, .. } = change;
                tracing::info!(model = name, ?loaded, ?kept, ?unloaded, "model reloaded");
            }
            Err(ChangeError::Refused(_)) => {
                let reason = reloaded.as_ref().err().map(ToString::to_string).unwrap_or_default();
                tracing::error!(model = name, reason, "model not loaded; what was served is served on");
                self.reasons().insert(name.to_owned(), Reason::Refused(reason));
            }
            Err(_) => return reloaded,
        }
        self.count(reloaded.is_ok());
        reloaded
    }

    fn reload_all_now(&self) -> Result<Changes, ChangeError> {
        let on_disk = disk::model_names(&self.dir).map_err(|error| {
            tracing::error!(%error, "models not reloaded; what was served is served on");
            self.count(false);
            // What is there of any model cannot be told.
            self.loader.metrics.models_refused.set(self.models().len().max(1) as i64);
            error
        })?;
        let by_hand = |name: &str| matches!(self.reasons().get(name), Some(Reason::Unloaded));
        let mut changes = Changes { changed: Vec::new(), refused: Vec::new() };
        for name in &on_disk {
            if by_hand(name) {
                tracing::info!(model = name, "passed over: it was unloaded; load it to serve it again");
                continue;
            }
            match self.reload_now(name) {
                Ok(change) => changes.changed.push(change),
                Err(ChangeError::Stopping) => return Err(ChangeError::Stopping),
                Err(error) => changes.refused.push((name.clone(), error)),
            }
        }
        let gone: Vec<String> = self.models().keys().filter(|name| !on_disk.contains(*name)).cloned().collect();
        for name in gone {
            match self.take_away(&name) {
                Ok(change) => {
                    self.loader.metrics.gone(&name);
                    self.count(true);
                    changes.changed.push(change);
                }
                Err(error) => changes.refused.push((name, error)),
            }
        }
        self.reasons().retain(|name, _| {
            let there = on_disk.contains(name);
            if !there {
                self.loader.metrics.gone(name);
            }
            there
        });
        if let Err(error) = self.choose_default(&on_disk) {
            tracing::error!(%error, "default model not changed");
            changes.refused.push((disk::DEFAULT.to_owned(), error.into()));
        }
        self.show_refused();
        let of =
            |which: fn(&Change) -> &[String]| changes.changed.iter().map(|change| which(change).len()).sum::<usize>();
        tracing::info!(
            loaded = of(|change| &change.loaded),
            kept = of(|change| &change.kept),
            unloaded = of(|change| &change.unloaded),
            models_refused = changes.refused.len(),
            "models reloaded"
        );
        Ok(changes)
    }

    /// Chooses the model of requests that name none as [`load`](Self::load) does, but that it stays what it is where the
    /// directory does not say.
    fn choose_default(&self, on_disk: &BTreeSet<String>) -> Result<(), RegistryError> {
        if self.default_given {
            return Ok(());
        }
        let known: Vec<&str> = on_disk.iter().map(String::as_str).collect();
        let chosen = disk::default_of(&self.dir, None, &known)?;
        if let Some(name) = chosen.filter(|name| !self.is_default(name)) {
            tracing::info!(model = name, "default model changed");
            *self.default.write().unwrap_or_else(PoisonError::into_inner) = Some(name.into());
        }
        Ok(())
    }

    fn reasons(&self) -> MutexGuard<'_, BTreeMap<String, Reason>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a model whose directory was read.
    fn count(&self, ok: bool) {
        self.loader.metrics.reloaded(ok);
        self.show_refused();
    }

    fn show_refused(&self) {
        let refused = self.reasons().values().filter(|reason| matches!(reason, Reason::Refused(_))).count();
        self.loader.metrics.models_refused.set(refused as i64);
    }

    fn read_anew(&self, name: &str) -> Result<Change, ChangeError> {
        let Some(dir) = disk::model_dir(&self.dir, name) else {
            let found = disk::scan(&self.dir).unwrap_or_default();
            let mut known: Vec<&String> = found.iter().map(|(name, ..)| name).collect();
            known.dedup();
            return Err(Unknown::Name { name: shortened(name), known: names(known.into_iter()) }.into());
        };
        let found = disk::versions(&dir)?;
        if found.is_empty() {
            return Err(RegistryError::NoVersion(dir).into());
        }
        let before = self.versions(name).unwrap_or_default();
        let (mut after, mut bundles, mut errors) = (Versions::new(), BTreeMap::new(), Vec::new());
        for (version, path) in found {
            match before.get(&version) {
                Some(model) if model.engine.bundle().is_current() => {
                    after.insert(version, Arc::clone(model));
                }
                _ => match Bundle::load(&path) {
                    Ok(bundle) => drop(bundles.insert(version, bundle)),
                    Err(error) => errors.push(error.into()),
                },
            }
        }
        if !errors.is_empty() {
            return Err(ChangeError::Refused(errors));
        }
        let made = self.loader.make(name, bundles, &before).map_err(ChangeError::Refused)?;
        if !made.is_empty() {
            self.loader.settle();
        }
        let list = |versions: &Versions| versions.keys().map(u64::to_string).collect();
        let (loaded, kept) = (list(&made), list(&after));
        after.extend(made);
        let unloaded = before.keys().filter(|version| !after.contains_key(version)).map(u64::to_string).collect();
        newest(&after).metrics.set_ready(true);
        drop(before);
        self.put(name, Some(after));
        Ok(Change { name: name.to_owned(), loaded, kept, unloaded })
    }

    fn unload_now(&self, name: &str) -> Result<Change, ChangeError> {
        let change = self.take_away(name)?;
        self.reasons().insert(name.to_owned(), Reason::Unloaded);
        self.show_refused();
        Ok(change)
    }

    fn take_away(&self, name: &str) -> Result<Change, ChangeError> {
        let Some(versions) = self.versions(name) else {
            return Err(Unknown::Name { name: shortened(name), known: names(self.models().keys()) }.into());
        };
        let unloaded: Vec<String> = versions.keys().map(u64::to_string).collect();
        newest(&versions).metrics.set_ready(false);
        drop(versions);
        self.put(name, None);
        tracing::info!(model = name, versions = ?unloaded, "model unloaded");
        Ok(Change { name: name.to_owned(), loaded: Vec::new(), kept: Vec::new(), unloaded })
    }

    /// Puts `after` in the place of the model's versions, in one step for requests, and retires those that are not in it.
    fn put(&self, name: &str, after: Option<Versions>) {
        let after = after.map(Arc::new);
        let before = {
            let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
            let before = match &after {
                Some(after) => models.insert(name.to_owned(), Arc::clone(after)),
                None => models.remove(name),
            };
            let some = !models.is_empty();
            self.any.send_if_modified(|any| std::mem::replace(any, some) != some);
            before
        };
        let mut gone = Vec::new();
        for (version, model) in before.as_deref().into_iter().flatten() {
            let next = after.as_ref().and_then(|after| after.get(version));
            if next.is_some_and(|next| Arc::ptr_eq(next, model)) {
                continue;
            }
            // A model of as many blocks may have use for its masks.
            let blocks = |model: &Model| model.engine.costs().blocks.len();
            if next.is_none_or(|next| blocks(next) == blocks(model)) {
                self.loader.save_profile(model);
            }
            gone.push(Arc::clone(model));
        }
        drop(before);
        let give_up = Arc::clone(&self.loader.options.give_up);
        self.retired.take(gone, move || give_up.load(Ordering::Relaxed));
    }

    /// The versions that are served, by name, the oldest first, without reasons.
    pub fn loaded(&self) -> Vec<Indexed> {
        let models = self.models();
        models.values().flat_map(|versions| versions.values()).map(|model| Indexed::ready(model)).collect()
    }

    /// [`loaded`](Self::loaded) with what is in the directory and not served. Reads the directory: for a thread that may
    /// block.
    pub fn index(&self) -> Vec<Indexed> {
        let mut index = self.loaded();
        let reasons = self.reasons().clone();
        for entry in &mut index {
            if let Some(Reason::Refused(reason)) = reasons.get(&entry.name) {
                entry.reason.clone_from(reason);
            }
        }
        for (name, version, _) in disk::scan(&self.dir).unwrap_or_default() {
            let version = version.to_string();
            if !index.iter().any(|entry| entry.name == name && entry.version == version) {
                let reason = match reasons.get(&name) {
                    None => "not loaded",
                    Some(Reason::Unloaded) => "unloaded",
                    Some(Reason::Refused(reason)) => reason,
                };
                let reason = reason.to_owned();
                index.push(Indexed { name, version, state: "UNAVAILABLE", reason });
            }
        }
        index.sort_by(|a, b| {
            let key = |entry: &Indexed| (entry.name.clone(), disk::number(&entry.version));
            key(a).cmp(&key(b))
        });
        index
    }

    /// Changes nothing more, and waits for what changes and goes, for at most `most`. Returns whether all of it has ended:
    /// ONNX Runtime must not be used while the process ends. Loading is to be [given up](super::LoadOptions::give_up)
    /// before.
    pub async fn close(&self, most: Duration) -> bool {
        let Ok(turn) = tokio::time::timeout(most, self.changing.lock()).await else { return false };
        let threads = self.retired.threads();
        let joined = tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join())));
        let ended = tokio::time::timeout(most, joined).await.is_ok();
        drop(turn);
        ended
    }
}
