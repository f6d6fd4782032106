//! Places in the line that are fair between flows, without threads and without a clock.
//!
//! Each item has a place in virtual time, in which every flow that waits goes forward at the same pace, an item at a time:
//! the one now, or behind the newest item of its own flow (start-time fair queueing; Goyal, Vin and Cheng, SIGCOMM 1996). A
//! flow that has little to do waits for about one item of each other flow, however many those have. Virtual time goes on by one
//! item once each of the flows that wait has been served one, so that flows that come and go do not starve one that stays.

use std::collections::HashMap;

/// Items that take turns with those of other flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FlowId(pub(super) u64);

/// A place in the line; an item keeps it from stage to stage. Those of one flow are in the order of their age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    start: u64,
    /// Of those that start at the same time the oldest is first.
    age: u64,
}

impl Place {
    /// Before all others.
    pub(super) const FIRST: Self = Self { start: 0, age: 0 };
}

/// Virtual time that an item takes its flow forward. A power of two far above the number of flows.
const ITEM: u64 = 1 << 20;

/// Flows of which nothing waits that are remembered, at most; beyond it what they have had is forgotten.
const MOST_IDLE: usize = 4096;

#[derive(Debug)]
pub(super) struct Flows {
    now: u64,
    entered: u64,
    /// Those of which something waits, and those that were served beyond `now`.
    flows: HashMap<FlowId, Flow>,
    /// Flows of which something waits.
    active: usize,
    /// How many flows there may be before those that have nothing to be remembered for are looked for.
    look_at: usize,
}

#[derive(Debug)]
struct Flow {
    /// Where its next item starts, or now where that is later.
    next: u64,
    waiting: usize,
}

impl Flows {
    pub(super) fn new() -> Self {
        Self { now: 0, entered: 0, flows: HashMap::new(), active: 0, look_at: 64 }
    }

    /// The place of a new item of `flow`, where `oldest` is the first place of those that wait.
    pub(super) fn enter(&mut self, flow: FlowId, oldest: Option<Place>) -> Place {
        // Time keeps to what waits: it neither lags behind nor runs a whole item ahead, in whatever order items are taken.
        if let Some(Place { start, .. }) = oldest {
            self.now = self.now.clamp(start, start + ITEM - 1);
        }
        if self.flows.len() >= self.look_at {
            self.forget();
        }
        let state = self.flows.entry(flow).or_insert(Flow { next: self.now, waiting: 0 });
        let place = Place { start: state.next.max(self.now), age: self.entered };
        self.entered += 1;
        state.next = place.start + ITEM;
        self.active += usize::from(state.waiting == 0);
        state.waiting += 1;
        place
    }

    /// An item of `flow` that was [taken](Self::take) waits again, where it was.
    pub(super) fn come_back(&mut self, flow: FlowId, place: Place) {
        let state = self.flows.entry(flow).or_insert(Flow { next: place.start + ITEM, waiting: 0 });
        self.active += usize::from(state.waiting == 0);
        state.waiting += 1;
    }

    /// An item of `flow` waits no more. Time goes on where it is `done` with; one that is not may come back.
    pub(super) fn take(&mut self, flow: FlowId, done: bool) {
        let Some(state) = self.flows.get_mut(&flow) else { return };
        if done {
            self.now += ITEM / self.active.max(1) as u64;
        }
        state.waiting -= 1;
        if state.waiting == 0 {
            self.active -= 1;
            if state.next <= self.now {
                self.flows.remove(&flow);
            }
        }
    }

    fn forget(&mut self) {
        self.flows.retain(|_, flow| flow.waiting > 0 || flow.next > self.now);
        if self.flows.len() > self.active + MOST_IDLE {
            self.flows.retain(|_, flow| flow.waiting > 0);
        }
        self.look_at = (2 * self.flows.len()).max(64);
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.flows.len()
    }

    #[cfg(test)]
    pub(super) fn active(&self) -> usize {
        self.active
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// One item after the other is served, the first place first.
    struct Bench {
        flows: Flows,
        waiting: BTreeMap<Place, u64>,
    }

    impl Bench {
        fn new() -> Self {
            Self { flows: Flows::new(), waiting: BTreeMap::new() }
        }

        fn enter(&mut self, flow: u64) -> Place {
            let oldest = self.waiting.first_key_value().map(|(&place, _)| place);
            let place = self.flows.enter(FlowId(flow), oldest);
            assert_eq!(self.waiting.insert(place, flow), None, "a place is one item's");
            place
        }

        fn enter_many(&mut self, flow: u64, items: usize) {
            for _ in 0..items {
                self.enter(flow);
            }
        }

        fn serve(&mut self) -> Option<(Place, u64)> {
            let (place, flow) = self.waiting.pop_first()?;
            self.flows.take(FlowId(flow), true);
            Some((place, flow))
        }

        fn serve_all(&mut self) -> Vec<u64> {
            std::iter::from_fn(|| self.serve().map(|(_, flow)| flow)).collect()
        }
    }

    #[test]
    fn flows_take_turns_and_each_keeps_its_order() {
        let mut bench = Bench::new();
        let places: Vec<Place> = [1, 1, 1, 1, 2, 2, 3].map(|flow| bench.enter(flow)).into();
        assert!(places[..4].is_sorted() && places[4..6].is_sorted());
        assert_eq!(bench.serve_all(), [1, 2, 3, 1, 2, 1, 1]);
    }

    #[test]
    fn a_flow_alone_is_served_in_its_order_and_forgotten() {
        let mut bench = Bench::new();
        for _ in 0..1000 {
            bench.enter(1);
            bench.enter(1);
            assert_eq!(bench.serve_all(), [1, 1]);
            assert_eq!((bench.flows.remembered(), bench.flows.active()), (0, 0));
        }
    }

    #[test]
    fn one_that_floods_does_not_delay_one_that_does_not() {
        let mut bench = Bench::new();
        bench.enter_many(1, 500);
        for _ in 0..100 {
            let light = bench.enter(2);
            let before = std::iter::from_fn(|| bench.serve()).take_while(|(place, _)| *place != light).count();
            assert!(before <= 1, "{before} items of the flood went before it");
        }
    }

    /// Each of them is new, and so has had nothing yet.
    #[test]
    fn flows_that_come_and_go_do_not_starve_one_that_stays() {
        let mut bench = Bench::new();
        bench.enter_many(0, 10);
        let mut served = 0;
        for flow in 1..=1000 {
            bench.enter(flow);
            if flow > 3 {
                served += usize::from(bench.serve().is_some_and(|(_, flow)| flow == 0));
            }
        }
        assert_eq!(served, 10);
        assert!(bench.flows.remembered() < 200, "{} flows are remembered", bench.flows.remembered());
    }

    /// Items that are given up before their turn are done with; those that fail while they are looked at never come back.
    #[test]
    fn what_is_remembered_of_flows_is_bounded() {
        let mut flows = Flows::new();
        let oldest = flows.enter(FlowId(0), None);
        for flow in 1..100_000 {
            let place = flows.enter(FlowId(flow), Some(oldest));
            flows.take(FlowId(flow), false);
            if flow % 3 == 0 {
                flows.come_back(FlowId(flow), place);
                flows.take(FlowId(flow), false);
            }
            assert!(flows.remembered() <= 2 * (MOST_IDLE + 1) + 1, "{}", flows.remembered());
            assert_eq!(flows.active(), 1);
        }
    }

    proptest! {
        /// Flows that always have some to do and one that sends one at a time: that one waits for at most one item of each
        /// other, and of the others none gets ahead of another by more than two.
        #[test]
        fn a_light_flow_waits_for_one_item_of_each_other(
            backlogs in prop::collection::vec(1usize..40, 1..12), pauses in prop::collection::vec(0usize..30, 1..40),
        ) {
            let others = backlogs.len() as u64;
            let mut bench = Bench::new();
            let refill = |bench: &mut Bench, flow: u64| {
                let waiting = bench.waiting.values().filter(|other| **other == flow).count();
                bench.enter_many(flow, backlogs[flow as usize - 1] - waiting);
            };
            (1..=others).for_each(|flow| refill(&mut bench, flow));
            let mut served = vec![0usize; backlogs.len()];
            for pause in pauses {
                for _ in 0..pause {
                    let (_, flow) = bench.serve().unwrap();
                    served[flow as usize - 1] += 1;
                    refill(&mut bench, flow);
                }
                let light = bench.enter(0);
                let mut before = BTreeSet::new();
                loop {
                    let (place, flow) = bench.serve().unwrap();
                    if place == light {
                        break;
                    }
                    prop_assert!(before.insert(flow), "two of flow {flow} went before it");
                    served[flow as usize - 1] += 1;
                    refill(&mut bench, flow);
                }
                let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
                prop_assert!(most - least <= 2, "{served:?}");
            }
            prop_assert!(bench.flows.remembered() <= backlogs.len() + 1);
        }
    }
}
