//! Who may wait: a bounded number of images, of one flow no more than its share, and none that would be answered too late;
//! refused at once beyond it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::fair::FlowId;
use super::wait::Ahead;

/// Why an image is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As many images wait as may.
    Full,
    /// As many images of the flow wait as may, or as there are places left for it.
    FlowFull,
    /// It would be answered so much too late.
    Late(Duration),
    /// The server is stopping and takes no new requests.
    Stopping,
}

/// Images that take turns with those of other flows: the images of one connection.
#[derive(Debug)]
pub struct Flow {
    id: FlowId,
    waiting: AtomicUsize,
    /// What its bodies hold in memory, in units of the server's.
    held: AtomicUsize,
}

impl Flow {
    /// One of its own.
    pub fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: FlowId(NEXT.fetch_add(1, Ordering::Relaxed)),
            waiting: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
        })
    }

    pub(super) fn id(&self) -> FlowId {
        self.id
    }

    /// Counts so much more that its bodies hold, and gives all that they do.
    pub fn hold(&self, units: usize) -> usize {
        self.held.fetch_add(units, Ordering::Relaxed) + units
    }

    pub fn release(&self, units: usize) {
        self.held.fetch_sub(units, Ordering::Relaxed);
    }
}

/// What is admitted, at most, and who works it off.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Images that may wait.
    pub images: usize,
    /// Of these, images of one flow; at most as many as there are places left for it, whatever this is.
    pub of_flow: usize,
    pub workers: usize,
    pub decoders: usize,
}

/// What an image takes, about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// A decoder.
    pub decode: Duration,
    /// A worker.
    pub run: Duration,
}

/// Counts the images that are admitted and whose path does not run yet.
pub struct Admission {
    room: Arc<Semaphore>,
    bounds: Bounds,
    stopping: watch::Sender<bool>,
    load: Arc<Load>,
}

/// What is admitted and not answered yet.
#[derive(Debug)]
struct Load {
    /// Images that wait.
    depth: IntGauge,
    /// Flows of which some wait.
    flows: AtomicUsize,
    /// Workers' time, about, of the images that wait, and of those whose path runs; in nanoseconds.
    waiting: AtomicU64,
    running: AtomicU64,
    /// Decoders' time, about, of the images that are not decoded yet; in nanoseconds.
    decoding: AtomicU64,
}

/// A waiting image's place; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    _place: OwnedSemaphorePermit,
    /// Its model's part, where that has a bound of its own.
    _share: Option<OwnedSemaphorePermit>,
    flow: Arc<Flow>,
    load: Arc<Load>,
    cost: u64,
    /// Until it is decoded.
    decode: u64,
}

impl Slot {
    pub(super) fn flow(&self) -> FlowId {
        self.flow.id
    }

    /// The image is decoded.
    pub fn decoded(&mut self) {
        self.load.decoding.fetch_sub(std::mem::take(&mut self.decode), Ordering::Relaxed);
    }

    /// Gives the place back: the image does not wait any more, its path runs.
    pub(super) fn run(self) -> Runs {
        self.load.running.fetch_add(self.cost, Ordering::Relaxed);
        Runs { load: Arc::clone(&self.load), cost: self.cost }
    }

    /// The same place, with its model's part.
    pub fn with(mut self, share: Option<OwnedSemaphorePermit>) -> Self {
        self._share = share;
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.decoded();
        self.load.depth.dec();
        self.load.waiting.fetch_sub(self.cost, Ordering::Relaxed);
        if self.flow.waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.load.flows.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An image whose path runs, until it is dropped.
#[derive(Debug)]
pub(super) struct Runs {
    load: Arc<Load>,
    cost: u64,
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.load.running.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

impl Admission {
    /// Room within `bounds`; `depth` shows how many images wait.
    pub fn new(bounds: Bounds, depth: IntGauge) -> Self {
        let [waiting, running, decoding] = [0; 3].map(AtomicU64::new);
        let load = Load { depth, flows: AtomicUsize::new(0), waiting, running, decoding };
        Self {
            room: Arc::new(Semaphore::new(bounds.images)),
            bounds,
            stopping: watch::Sender::new(false),
            load: Arc::new(load),
        }
    }

    /// Images that are decoded at once.
    pub fn decoders(&self) -> usize {
        self.bounds.decoders
    }

    /// How many images of a flow may wait.
    pub fn most(&self) -> usize {
        self.bounds.images.min(self.bounds.of_flow)
    }

    /// Whether a new request of `flow`, to be answered within the time that is `left`, may come in: asked before its body is
    /// read. It takes no place yet, so that a body that arrives slowly keeps nobody else out.
    ///
    /// # Errors
    /// The queue is full or the flow's share of it, an image would be answered too late, or the server is stopping.
    pub fn check(&self, flow: &Flow, left: Duration) -> Result<(), Refused> {
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        let free = self.room.available_permits();
        if free == 0 {
            return Err(Refused::Full);
        }
        let waiting = flow.waiting.load(Ordering::Relaxed);
        if waiting >= self.most_of_flow(waiting, free) {
            return Err(Refused::FlowFull);
        }
        self.in_time(flow, 1, Cost::default(), left)
    }

    /// Places for the `count` images of a request that [`check`](Self::check) let in, each at about `cost`: all
    /// or none. A server that is stopping still gives them.
    ///
    /// # Errors
    /// There is not room for all of them, or the last would be answered too late.
    pub fn places(&self, flow: &Arc<Flow>, count: usize, cost: Cost, left: Duration) -> Result<Vec<Slot>, Refused> {
        self.in_time(flow, count, cost, left)?;
        let wanted = u32::try_from(count).map_err(|_| Refused::Full)?;
        let free = self.room.available_permits();
        let mut all = Arc::clone(&self.room).try_acquire_many_owned(wanted).map_err(|_| Refused::Full)?;
        let within = |waiting: usize| waiting.checked_add(count).filter(|sum| *sum <= self.most_of_flow(waiting, free));
        let before = flow.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        if before.map_err(|_| Refused::FlowFull)? == 0 && count > 0 {
            self.load.flows.fetch_add(1, Ordering::Relaxed);
        }
        let (cost, decode) = (nanos(cost.run), nanos(cost.decode));
        let slots = std::iter::from_fn(|| {
            let place = all.split(1)?;
            self.load.depth.inc();
            self.load.waiting.fetch_add(cost, Ordering::Relaxed);
            self.load.decoding.fetch_add(decode, Ordering::Relaxed);
            Some(Slot {
                _place: place,
                _share: None,
                flow: Arc::clone(flow),
                load: Arc::clone(&self.load),
                cost,
                decode,
            })
        });
        Ok(slots.collect())
    }

    /// How many images of a flow of which some are `waiting` may wait while so many places are `free`: as many as that, so that
    /// each flow that floods leaves as much as it has; and the last eighth of all places are for flows of which nothing waits,
    /// so that one that comes finds a place though many flood.
    fn most_of_flow(&self, waiting: usize, free: usize) -> usize {
        let for_it = if waiting == 0 { free } else { waiting + free.saturating_sub(self.bounds.images / 8) };
        free.min(for_it).min(self.bounds.of_flow)
    }

    /// Checks that the last of `count` images more would be answered within the time that is `left`. While nothing waits
    /// that is not asked: what is known of the pace may be wrong, and only what runs puts it right.
    fn in_time(&self, flow: &Flow, count: usize, cost: Cost, left: Duration) -> Result<(), Refused> {
        let images = usize::try_from(self.load.depth.get()).unwrap_or(0);
        if images == 0 {
            return Ok(());
        }
        let own = flow.waiting.load(Ordering::Relaxed);
        let flows = self.load.flows.load(Ordering::Relaxed) + usize::from(own == 0);
        let time = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Ordering::Relaxed));
        let own_cost = |each: Duration| each.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
        let ahead = Ahead {
            running: time(&self.load.running),
            waiting: time(&self.load.waiting).saturating_add(own_cost(cost.run)),
            decoding: time(&self.load.decoding).saturating_add(own_cost(cost.decode)),
            images: images + count,
            turns: (own + count).saturating_mul(flows),
            workers: self.bounds.workers,
            decoders: self.bounds.decoders,
        };
        match ahead.time().checked_sub(left) {
            Some(late) if !late.is_zero() => Err(Refused::Late(late)),
            _ => Ok(()),
        }
    }

    /// Whether new requests are refused because the server is stopping.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Refuses new requests from now on.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until new requests are refused.
    pub async fn stopped(&self) {
        drop(self.stopping.subscribe().wait_for(|stopping| *stopping).await); // the sender is here
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn admission(images: usize, of_flow: usize) -> Admission {
        Admission::new(Bounds { images, of_flow, workers: 2, decoders: 2 }, IntGauge::new("depth", "depth").unwrap())
    }

    fn taken(admission: &Admission, flow: &Arc<Flow>, count: usize) -> Result<Vec<Slot>, Refused> {
        admission.places(flow, count, Cost::default(), LONG)
    }

    /// What counts the load is as if nothing had ever been admitted.
    fn is_empty(admission: &Admission) -> bool {
        let load = &admission.load;
        let sums = [&load.waiting, &load.running, &load.decoding].map(|sum| sum.load(Ordering::Relaxed));
        load.depth.get() == 0 && load.flows.load(Ordering::Relaxed) == 0 && sums == [0; 3]
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let (admission, flow) = (admission(3, 3), Flow::new());
        let first = taken(&admission, &flow, 1).unwrap();
        assert_eq!(taken(&admission, &flow, 3).unwrap_err(), Refused::Full);
        assert_eq!(admission.load.depth.get(), 1, "a refused request leaves nothing behind");
        admission.check(&flow, LONG).unwrap();
        let rest = taken(&admission, &Flow::new(), 2).unwrap();
        assert_eq!(admission.check(&flow, LONG), Err(Refused::Full));
        assert_eq!(admission.load.depth.get(), 3);
        drop((first, rest));
        assert!(is_empty(&admission));
        admission.check(&flow, LONG).unwrap();
    }

    #[test]
    fn a_flow_has_no_more_than_its_share() {
        let (admission, one, other) = (admission(8, 2), Flow::new(), Flow::new());
        assert_eq!(admission.most(), 2);
        let mut of_one = taken(&admission, &one, 2).unwrap();
        assert_eq!(admission.check(&one, LONG), Err(Refused::FlowFull));
        assert_eq!(taken(&admission, &one, 1).unwrap_err(), Refused::FlowFull);
        let of_other = taken(&admission, &other, 1).unwrap();
        admission.check(&other, LONG).unwrap();
        assert_eq!(taken(&admission, &other, 2).unwrap_err(), Refused::FlowFull, "all or none");
        // One whose path runs does not wait.
        let runs = of_one.pop().unwrap().run();
        let more = taken(&admission, &one, 1).unwrap();
        drop((of_one, of_other, more, runs));
        assert!(is_empty(&admission));
    }

    /// Twelve flows take all that they get and are served in turns.
    #[test]
    fn flows_that_flood_leave_places_to_one_that_comes() {
        let (admission, floods) = (admission(64, 64), [(); 12].map(|()| Flow::new()));
        let mut waiting = [(); 12].map(|()| Vec::new());
        for round in 0..600 {
            for (flow, waiting) in floods.iter().zip(&mut waiting) {
                while admission.check(flow, LONG).is_ok() {
                    waiting.extend(taken(&admission, flow, 1).unwrap());
                }
            }
            if round == 0 {
                assert_eq!(waiting[0].len(), 32, "the first may have half of all");
            }
            if round > 400 {
                drop(taken(&admission, &Flow::new(), 2).unwrap_or_else(|refused| panic!("round {round}: {refused:?}")));
                assert!(waiting.iter().all(|slots| slots.len() <= 64 / 8 + 1), "they share what there is");
            }
            drop(waiting[round % 12].pop());
        }
        drop(waiting);
        assert!(is_empty(&admission));
    }

    /// Forty flows, none of which would take more than its share of 64.
    #[test]
    fn the_last_places_are_for_flows_of_which_nothing_waits() {
        let (admission, floods) = (admission(64, 64), [(); 40].map(|()| Flow::new()));
        let mut waiting: Vec<Slot> = Vec::new();
        while let Some(more) = floods.iter().find_map(|flow| taken(&admission, flow, 1).ok()) {
            waiting.extend(more);
        }
        // Those that had nothing took one of the last.
        let of_each = floods.each_ref().map(|flow| flow.waiting.load(Ordering::Relaxed));
        assert_eq!(of_each[..12], [32, 16, 8, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        waiting.drain(..9);
        assert_eq!(taken(&admission, &floods[3], 2).unwrap_err(), Refused::FlowFull, "an eighth would not be left");
        waiting.extend(taken(&admission, &floods[3], 1).unwrap());
        assert_eq!(admission.check(&floods[4], LONG), Err(Refused::FlowFull));
        let come = Flow::new();
        waiting.extend(taken(&admission, &come, 8).unwrap());
        assert_eq!(admission.check(&come, LONG), Err(Refused::Full));
        drop(waiting);
        assert!(is_empty(&admission));
    }

    #[test]
    fn what_would_be_answered_too_late_is_refused() {
        let (admission, one, other) = (admission(400, 90), Flow::new(), Flow::new());
        let second = Duration::from_secs(1);
        let places =
            |flow, count, left| admission.places(flow, count, Cost { run: second, decode: Duration::ZERO }, left);
        let first = places(&one, 40, second).expect("nothing waits: it is tried");
        // 20 s of two workers and a quarter more are before it, but only one image goes before that of another flow.
        assert_eq!(admission.check(&one, 24 * second), Err(Refused::Late(second)));
        admission.check(&one, 26 * second).unwrap();
        admission.check(&other, 2 * second).unwrap();
        assert!(matches!(places(&one, 10, 30 * second), Err(Refused::Late(_))));
        let more = places(&one, 10, 32 * second).unwrap();
        assert!(matches!(places(&other, 20, 24 * second), Err(Refused::Late(_))), "twenty of each");
        let of_other = places(&other, 20, 26 * second).unwrap();
        // What runs is before everybody.
        let runs: Vec<Runs> = first.into_iter().map(Slot::run).collect();
        assert!(matches!(admission.check(&Flow::new(), 24 * second), Err(Refused::Late(_))));
        drop((more, of_other));
        admission.check(&one, Duration::ZERO).unwrap();
        drop(runs);
        assert!(is_empty(&admission));
    }

    #[test]
    fn images_that_are_not_decoded_are_waited_for_too() {
        let (admission, flow) = (admission(100, 100), Flow::new());
        let second = Duration::from_secs(1);
        let mut waiting = admission.places(&flow, 20, Cost { run: Duration::ZERO, decode: second }, second).unwrap();
        // Two decoders have 20 s to do.
        assert!(matches!(admission.check(&flow, 10 * second), Err(Refused::Late(_))));
        waiting[..10].iter_mut().for_each(Slot::decoded);
        admission.check(&flow, 10 * second).unwrap();
        drop(waiting);
        assert!(is_empty(&admission));
    }

    #[test]
    fn where_no_pace_is_known_nothing_is_late() {
        let (admission, flow) = (admission(100, 100), Flow::new());
        let _waiting = taken(&admission, &flow, 40).unwrap();
        admission.check(&flow, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_stopping_server_lets_nobody_in_but_serves_who_is() {
        let (admission, flow) = (admission(3, 3), Flow::new());
        admission.check(&flow, LONG).unwrap();
        admission.stop();
        assert_eq!(admission.check(&flow, LONG), Err(Refused::Stopping));
        assert_eq!(taken(&admission, &flow, 2).unwrap().len(), 2);
    }
}
