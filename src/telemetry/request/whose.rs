//! Whose request a thread or a task works on, for the log.

use std::sync::Arc;

use super::RequestContext;

tokio::task_local! {
    static WHOSE: Whose;
}

/// The requests that are worked on.
#[derive(Clone)]
pub enum Whose {
    One(Arc<RequestContext>),
    /// Those of a batch.
    Several(Arc<[Arc<RequestContext>]>),
}

impl Whose {
    /// The requests of a batch's images.
    pub fn batch<'c>(images: impl Iterator<Item = &'c Arc<RequestContext>>) -> Self {
        let mut each: Vec<&Arc<RequestContext>> = images.collect();
        each.dedup_by(|a, b| Arc::ptr_eq(a, b));
        match each.as_slice() {
            [one] => Self::One(Arc::clone(one)),
            several => Self::Several(several.iter().map(|one| Arc::clone(one)).collect()),
        }
    }

    /// Does `work`; what it logs is said to be of these requests.
    pub fn doing<T>(self, work: impl FnOnce() -> T) -> T {
        WHOSE.sync_scope(self, work)
    }
}

impl RequestContext {
    /// What `future` logs is said to be of this request.
    pub fn within<F: Future>(self: &Arc<Self>, future: F) -> impl Future<Output = F::Output> + use<F> {
        WHOSE.scope(Whose::One(Arc::clone(self)), future)
    }

    /// Does `work`; what it logs is said to be of this request.
    pub fn doing<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        Whose::One(Arc::clone(self)).doing(work)
    }
}

/// `work` for another thread; what it logs is said to be of the request that is worked on here.
pub fn carried<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let whose = WHOSE.try_get().ok();
    move || match whose {
        Some(whose) => whose.doing(work),
        None => work(),
    }
}

/// Shows `look` the requests that are worked on here.
pub(in crate::telemetry) fn current<T>(look: impl FnOnce(&[Arc<RequestContext>]) -> T) -> T {
    match WHOSE.try_get() {
        Ok(Whose::One(one)) => look(&[one]),
        Ok(Whose::Several(several)) => look(&several),
        Err(_) => look(&[]),
    }
}
