//! What one model may take of what all models share.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits of one model, below those of the server; `None` for none of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelLimits {
    /// Images that may wait.
    pub queue: Option<usize>,
    /// Images that a worker runs at a time.
    pub batch: Option<usize>,
    /// Time for a request.
    pub time: Option<Duration>,
}

/// The limits of each model, by name.
#[derive(Debug, Clone, Default)]
pub struct ModelsLimits {
    pub named: BTreeMap<String, ModelLimits>,
    /// Images that may wait of each other model.
    pub queue: Option<usize>,
}

/// What [`ModelLimit`] is written as.
pub const MODEL_LIMIT: &str = "NAME:LIMIT=VALUE,... with queue=IMAGES (1 to 1000000), batch=IMAGES (1 to 512) or \
                               timeout=TIME (1ms to 1day), each at most once";

/// The limits of the model called so, as `NAME:queue=64,batch=4,timeout=2s`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelLimit {
    pub name: String,
    pub limits: ModelLimits,
}

impl fmt::Display for ModelLimit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)
    }
}

impl FromStr for ModelLimit {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // A name may have colons in it; limits have none.
        let (name, given) = text.rsplit_once(':').filter(|(name, _)| !name.is_empty()).ok_or(())?;
        let mut limits = ModelLimits::default();
        for limit in given.split(',') {
            let (what, value) = limit.split_once('=').ok_or(())?;
            let images = |most: usize| value.parse().ok().filter(|images| (1..=most).contains(images)).ok_or(());
            let again = match what {
                "queue" => limits.queue.replace(images(1_000_000)?).is_some(),
                "batch" => limits.batch.replace(images(512)?).is_some(),
                "timeout" => {
                    let time = *value.parse::<humantime::Duration>().map_err(drop)?;
                    if !(Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&time) {
                        return Err(());
                    }
                    limits.time.replace(time).is_some()
                }
                _ => return Err(()),
            };
            if again {
                return Err(());
            }
        }
        Ok(Self { name: name.to_owned(), limits })
    }
}

/// The bounds of a model, shared by all its versions, those that were replaced too.
#[derive(Debug)]
pub struct Bounds {
    pub batch: usize,
    pub time: Duration,
    /// Images that may wait, and room for those that do not yet.
    queue: Option<(usize, Arc<Semaphore>)>,
}

/// As many images of a model wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelFull;

/// The model's part of a waiting image's place; `None` where it has no bound of its own.
pub type Share = Option<OwnedSemaphorePermit>;

impl Bounds {
    fn new(limits: &ModelLimits) -> Self {
        Self {
            batch: limits.batch.unwrap_or(usize::MAX),
            time: limits.time.unwrap_or(Duration::MAX),
            queue: limits.queue.map(|images| (images, Arc::new(Semaphore::new(images)))),
        }
    }

    /// Images that may wait.
    pub fn queue(&self) -> usize {
        self.queue.as_ref().map_or(usize::MAX, |(most, _)| *most)
    }

    /// Whether an image may wait. It takes no place yet.
    ///
    /// # Errors
    /// As many wait as may.
    pub fn check(&self) -> Result<(), ModelFull> {
        let full = self.queue.as_ref().is_some_and(|(_, room)| room.available_permits() == 0);
        if full { Err(ModelFull) } else { Ok(()) }
    }

    /// Shares for the `count` images of a request: all or none.
    ///
    /// # Errors
    /// There is not room for all of them.
    pub fn shares(&self, count: usize) -> Result<impl Iterator<Item = Share> + use<>, ModelFull> {
        let mut all = match &self.queue {
            None => None,
            Some((_, room)) => {
                let wanted = u32::try_from(count).map_err(|_| ModelFull)?;
                Some(Arc::clone(room).try_acquire_many_owned(wanted).map_err(|_| ModelFull)?)
            }
        };
        Ok(std::iter::repeat_with(move || all.as_mut().and_then(|all| all.split(1))).take(count))
    }
}

/// The bounds of all models that there were, by name.
#[derive(Debug, Default)]
pub(super) struct BoundsByName {
    limits: ModelsLimits,
    bounds: Mutex<BTreeMap<String, Arc<Bounds>>>,
}

impl BoundsByName {
    pub(super) fn new(limits: ModelsLimits) -> Self {
        Self { limits, bounds: Mutex::default() }
    }

    /// The bounds of the model called `name`: the same ones whenever they are asked for.
    pub(super) fn of(&self, name: &str) -> Arc<Bounds> {
        let mut bounds = self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        let made = bounds.entry(name.to_owned()).or_insert_with(|| {
            let mut limits = self.limits.named.get(name).copied().unwrap_or_default();
            limits.queue = limits.queue.or(self.limits.queue);
            Arc::new(Bounds::new(&limits))
        });
        Arc::clone(made)
    }

    /// Names that have limits and are none of `known`.
    pub(super) fn unused<'n>(&'n self, known: impl Fn(&str) -> bool + 'n) -> impl Iterator<Item = &'n str> {
        self.limits.named.keys().map(String::as_str).filter(move |name| !known(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_or_refused() {
        let read = |text: &str| text.parse::<ModelLimit>();
        let of = |queue, batch, time: Option<u64>| ModelLimits { queue, batch, time: time.map(Duration::from_millis) };
        for (text, name, limits) in [
            ("net:queue=64", "net", of(Some(64), None, None)),
            ("net:queue=1,batch=512,timeout=2s", "net", of(Some(1), Some(512), Some(2000))),
            ("net:timeout=1ms,batch=1", "net", of(None, Some(1), Some(1))),
            ("a:b:queue=1000000", "a:b", of(Some(1_000_000), None, None)),
        ] {
            assert_eq!(read(text), Ok(ModelLimit { name: name.to_owned(), limits }), "{text}");
        }
        for text in [
            "",
            "net",
            "net:",
            ":queue=1",
            "net:queue",
            "net:queue=",
            "net:queue=0",
            "net:queue=-1",
            "net:queue=1000001",
            "net:batch=513",
            "net:timeout=2",
            "net:timeout=0s",
            "net:timeout=2days",
            "net:queue=1,queue=2",
            "net:queue=1,",
            "net:images=3",
        ] {
            assert_eq!(read(text), Err(()), "{text}");
        }
    }

    #[test]
    fn a_model_keeps_its_bounds_and_others_have_theirs() {
        let limits = ModelLimits { queue: Some(2), ..ModelLimits::default() };
        let named = BTreeMap::from([("net".to_owned(), limits), ("none".to_owned(), limits)]);
        let all = BoundsByName::new(ModelsLimits { named, queue: Some(9) });
        assert_eq!(all.unused(|name| name == "net").collect::<Vec<_>>(), ["none"]);
        let (net, other) = (all.of("net"), all.of("other"));
        assert_eq!((net.queue(), other.queue(), other.batch, other.time), (2, 9, usize::MAX, Duration::MAX));
        let first: Vec<Share> = net.shares(1).unwrap().collect();
        assert!(net.shares(2).is_err() && net.check().is_ok(), "all or none");
        let second: Vec<Share> = all.of("net").shares(1).unwrap().collect();
        assert_eq!(net.check(), Err(ModelFull));
        assert!(other.shares(9).is_ok());
        drop((first, second));
        assert_eq!(net.shares(2).map(Iterator::count), Ok(2));
        let free = BoundsByName::default().of("net");
        assert!(free.check().is_ok() && free.shares(3).unwrap().all(|share| share.is_none()));
    }
}
