//! A plan and a target, made up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::plan::{Arm, Datatype, Faults, Format, Images, Load, Plan, Protocol, Request};
use crate::record::{Cause, Image, Item, Payload, Reply};
use crate::target::{Caller, Target};

/// One arm, one client, a second.
pub(crate) fn plan() -> Plan {
    Plan {
        title: "made up".to_owned(),
        seed: 7,
        arms: vec![arm("only")],
        baseline: 0,
        request: Request {
            protocol: Protocol::Classify,
            images: 1,
            timeout: Duration::from_secs(1),
            new_connections: false,
            api_key: None,
            input: "input".to_owned(),
            datatype: Datatype::Bytes,
            output: None,
        },
        images: Images { from: "images".into(), limit: 100, sizes: Vec::new(), format: Format::Png, bad: 0.0 },
        load: Load::Closed { clients: 1, think: Duration::ZERO },
        warm_up: Duration::ZERO,
        measure: Duration::from_secs(1),
        slice: Duration::from_millis(100),
        slo: None,
        faults: Faults::default(),
        fail_if: Vec::new(),
    }
}

pub(crate) fn arm(name: &str) -> Arm {
    Arm { name: name.to_owned(), url: String::new(), model: None, version: None, parameters: Vec::new() }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    Answer(Duration),
    Refuse(Duration),
    Fail,
    Hang,
}

pub(crate) fn cause(kind: &str) -> Cause {
    Cause { kind: kind.to_owned(), message: format!("{kind}, made up") }
}

/// Answers as a function says, of the item and how many calls there were before.
pub(crate) struct MadeUp<F> {
    fate: F,
    images: usize,
    seen: Arc<Seen>,
}

/// What a target saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) calls: AtomicUsize,
    /// Calls under way, by arm.
    under_way: Mutex<Vec<usize>>,
    /// In order.
    pub(crate) items: Mutex<Vec<Item>>,
    /// Calls that were made while another arm had one under way.
    pub(crate) shared: AtomicUsize,
    pub(crate) callers: AtomicUsize,
}

impl<F: Fn(Item, usize) -> Fate + Clone + Send + Sync + 'static> MadeUp<F> {
    pub(crate) fn new(images: usize, fate: F) -> (Arc<Self>, Arc<Seen>) {
        let seen = Arc::new(Seen { under_way: Mutex::new(vec![0; 4]), ..Seen::default() });
        (Arc::new(Self { fate, images, seen: seen.clone() }), seen)
    }
}

impl<F: Fn(Item, usize) -> Fate + Clone + Send + Sync + 'static> Target for MadeUp<F> {
    type Caller = Client<F>;

    fn caller(&self, arm: usize) -> Client<F> {
        self.seen.callers.fetch_add(1, Ordering::Relaxed);
        Client { arm, fate: self.fate.clone(), seen: self.seen.clone() }
    }

    fn images(&self) -> usize {
        self.images
    }
}

pub(crate) struct Client<F> {
    arm: usize,
    fate: F,
    seen: Arc<Seen>,
}

/// A call under way; also when its future is dropped.
struct UnderWay(Arc<Seen>, usize);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.lock().unwrap()[self.1] -= 1;
    }
}

impl<F: Fn(Item, usize) -> Fate + Clone + Send + Sync + 'static> Caller for Client<F> {
    async fn call(&mut self, item: Item) -> Reply {
        assert_eq!(item.arm, self.arm);
        self.seen.items.lock().unwrap().push(item);
        {
            let mut under_way = self.seen.under_way.lock().unwrap();
            under_way[item.arm] += 1;
            let others = under_way.iter().enumerate().any(|(arm, count)| arm != item.arm && *count > 0);
            self.seen.shared.fetch_add(usize::from(others), Ordering::Relaxed);
        }
        let _under_way = UnderWay(self.seen.clone(), item.arm);
        let fate = (self.fate)(item, self.seen.calls.fetch_add(1, Ordering::Relaxed));
        if let Fate::Answer(time) | Fate::Refuse(time) = fate
            && !time.is_zero()
        {
            tokio::time::sleep(time).await;
        }
        match (fate, item.load) {
            (Fate::Hang, _) => std::future::pending().await,
            (_, Payload::Broken { fault, .. }) => Reply::Broken(fault),
            (Fate::Answer(_), Payload::Images { .. }) => Reply::Answered(vec![Image::default()]),
            (Fate::Fail, _) => Reply::Failed(cause("connect")),
            _ => Reply::Refused(cause("503 overloaded")),
        }
    }
}
