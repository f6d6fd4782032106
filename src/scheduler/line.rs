//! The order in which waiting images are taken: what a worker gets next, without threads and without a clock.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Instant;

use super::fair::{FlowId, Flows, Place};

/// What has to happen to an image next; the first kind goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The policy network has to decide: cheap, and the more masks are known, the more images run together.
    Look,
    /// Its path has to run.
    Run,
}

/// What items of a batch have in common.
pub(super) trait Kind: Clone + Eq + Hash {
    fn stage(&self) -> Stage;

    /// Items of a batch, at most.
    fn most(&self) -> usize {
        usize::MAX
    }

    /// Whether items of this kind and `other` may be in one batch.
    fn mixes(&self, other: &Self) -> bool {
        let _ = other;
        false
    }

    /// Which of `groups`, kinds that [mix](Self::mixes) and how many items of each there are, make a batch with the first one:
    /// their positions, in ascending order, 0 first.
    fn together(groups: &[(&Self, usize)]) -> Vec<usize> {
        let _ = groups;
        vec![0]
    }
}

/// Something that waits.
pub(super) trait Waits {
    /// Whether it is still worth any compute.
    fn is_wanted(&self, now: Instant) -> bool;

    /// With what it takes turns.
    fn flow(&self) -> FlowId;
}

/// Items taken together.
#[derive(Debug, PartialEq)]
pub(super) struct Batch<K, T> {
    /// That of the items.
    pub(super) kind: K,
    /// The first place first.
    pub(super) items: Vec<(Place, T)>,
    /// Items of other kinds in the same batch, kind by kind.
    pub(super) others: Vec<(K, Vec<(Place, T)>)>,
    /// Items that were come upon and are not wanted any more.
    pub(super) unwanted: Vec<T>,
}

impl<K, T> Batch<K, T> {
    /// The items of every kind.
    pub(super) fn all(&self) -> impl Iterator<Item = &(Place, T)> {
        self.items.iter().chain(self.others.iter().flat_map(|(_, items)| items))
    }
}

/// Groups that are looked at for one batch, at most: the line is locked meanwhile.
const MOST_GROUPS: usize = 256;

/// Items that wait, in groups of one kind, in the order of places that are [fair](super::fair) between flows. How many may
/// wait is bounded by [`Admission`](super::Admission), not here.
pub(super) struct Line<K, T> {
    groups: HashMap<K, BTreeMap<Place, T>>,
    /// The first item of each group.
    heads: BTreeMap<(Stage, Place), K>,
    /// Items in each stage.
    waiting: [usize; 2],
    flows: Flows,
}

impl<K: Kind, T: Waits> Line<K, T> {
    pub(super) fn new() -> Self {
        Self { groups: HashMap::new(), heads: BTreeMap::new(), waiting: [0; 2], flows: Flows::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Adds a new item, behind all others of its flow.
    pub(super) fn push(&mut self, kind: K, item: T) {
        let oldest = [Stage::Look, Stage::Run].into_iter().filter_map(|stage| self.first(stage)).min();
        let place = self.flows.enter(item.flow(), oldest);
        self.insert(kind, place, item);
    }

    /// Adds an item that was taken before, where it was.
    pub(super) fn put_back(&mut self, kind: K, place: Place, item: T) {
        self.flows.come_back(item.flow(), place);
        self.insert(kind, place, item);
    }

    /// The first place of those that wait in a stage.
    fn first(&self, stage: Stage) -> Option<Place> {
        let (&(found, place), _) = self.heads.range((stage, Place::FIRST)..).next()?;
        (found == stage).then_some(place)
    }

    fn insert(&mut self, kind: K, place: Place, item: T) {
        let stage = kind.stage();
        self.waiting[stage as usize] += 1;
        let group = self.groups.entry(kind.clone()).or_default();
        let head = group.first_key_value().map(|(&head, _)| head);
        group.insert(place, item);
        if head.is_none_or(|head| place < head) {
            head.map(|head| self.heads.remove(&(stage, head)));
            self.heads.insert((stage, place), kind);
        }
    }

    /// Makes the next [`take`](Self::take) panic.
    #[cfg(test)]
    pub(super) fn corrupt(&mut self, kind: K) {
        self.heads.insert((kind.stage(), Place::FIRST), kind);
    }

    /// Takes the first item of the first stage that has any, with the next of its kind, and where that is better with those of
    /// other kinds: at most `most` and what the kind may have, and at most the `workers`-th part of what waits in the stage, so
    /// that the other workers get their share.
    pub(super) fn take(&mut self, most: usize, workers: usize, now: Instant) -> Option<Batch<K, T>> {
        let ((stage, _), kind) = self.heads.pop_first()?;
        let share = self.waiting[stage as usize].div_ceil(workers).clamp(1, most.min(kind.most()));
        let companions = self.companions(stage, &kind, share);
        let mut unwanted = Vec::new();
        let items = self.take_of(&kind, share, now, &mut unwanted);
        let mut left = share - items.len();
        let mut others = Vec::with_capacity(companions.len());
        for kind in companions {
            let items = self.take_of(&kind, left, now, &mut unwanted);
            left -= items.len();
            if !items.is_empty() {
                others.push((kind, items));
            }
        }
        Some(Batch { kind, items, others, unwanted })
    }

    /// The kinds that make a batch with `kind`, which has the first place, in the order of their first items.
    fn companions(&self, stage: Stage, kind: &K, share: usize) -> Vec<K> {
        let size = |kind: &K, left: usize| self.groups.get(kind).map_or(0, BTreeMap::len).min(left);
        let own = size(kind, share);
        let mut left = share - own;
        if left == 0 {
            return Vec::new();
        }
        let mut groups = vec![(kind, own)];
        for (_, other) in self.heads.range((stage, Place::FIRST)..).take_while(|((found, _), _)| *found == stage) {
            if left == 0 || groups.len() == MOST_GROUPS {
                break;
            }
            if other != kind && kind.mixes(other) {
                let own = size(other, left);
                groups.push((other, own));
                left -= own;
            }
        }
        if groups.len() == 1 {
            return Vec::new();
        }
        K::together(&groups).into_iter().skip(1).map(|at| groups[at].0.clone()).collect()
    }

    /// Takes the first items of one kind, at most `most` that are wanted.
    fn take_of(&mut self, kind: &K, most: usize, now: Instant, unwanted: &mut Vec<T>) -> Vec<(Place, T)> {
        let stage = kind.stage();
        let group = self.groups.get_mut(kind).expect("a kind that waits has a group");
        let (&head, _) = group.first_key_value().expect("a group has an item");
        self.heads.remove(&(stage, head));
        let mut items = Vec::with_capacity(most.min(group.len()));
        while items.len() < most
            && let Some((place, item)) = group.pop_first()
        {
            let wanted = item.is_wanted(now);
            self.waiting[stage as usize] -= 1;
            self.flows.take(item.flow(), !wanted || stage == Stage::Run);
            if wanted { items.push((place, item)) } else { unwanted.push(item) }
        }
        match group.first_key_value() {
            Some((&head, _)) => drop(self.heads.insert((stage, head), kind.clone())),
            None => drop(self.groups.remove(kind)),
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// `None` has to be looked at; a number is a path. Paths from 100 on mix among each other, those of two items at most.
    type Path = Option<u8>;

    impl Kind for Path {
        fn stage(&self) -> Stage {
            if self.is_none() { Stage::Look } else { Stage::Run }
        }

        fn mixes(&self, other: &Self) -> bool {
            self.is_some_and(|own| own >= 100) && other.is_some_and(|other| other >= 100)
        }

        fn together(groups: &[(&Self, usize)]) -> Vec<usize> {
            std::iter::once(0).chain((1..groups.len()).filter(|&at| groups[at].1 <= 2)).collect()
        }
    }

    #[derive(Debug, Clone, PartialEq)]
    struct Item {
        name: usize,
        flow: u64,
        until: Instant,
    }

    impl Waits for Item {
        fn is_wanted(&self, now: Instant) -> bool {
            now < self.until
        }

        fn flow(&self) -> FlowId {
            FlowId(self.flow)
        }
    }

    struct Bench {
        line: Line<Path, Item>,
        now: Instant,
        pushed: usize,
    }

    impl Bench {
        fn new() -> Self {
            Self { line: Line::new(), now: Instant::now(), pushed: 0 }
        }

        fn push_for(&mut self, path: Path, flow: u64, seconds: u64) {
            let until = self.now + Duration::from_secs(seconds);
            self.line.push(path, Item { name: self.pushed, flow, until });
            self.pushed += 1;
        }

        fn push(&mut self, path: Path) {
            self.push_for(path, 0, 1000);
        }

        /// Kind, names taken, names given up.
        fn take(&mut self, most: usize, workers: usize) -> Option<(Path, Vec<usize>, Vec<usize>)> {
            let batch = self.line.take(most, workers, self.now)?;
            let names = batch.all().map(|(_, item)| item.name).collect();
            Some((batch.kind, names, batch.unwanted.into_iter().map(|item| item.name).collect()))
        }

        fn run(&mut self, most: usize, workers: usize) -> Vec<usize> {
            self.take(most, workers).map(|(_, names, _)| names).unwrap_or_default()
        }
    }

    #[test]
    fn a_path_gathers_its_images_and_the_oldest_path_goes_first() {
        let mut bench = Bench::new();
        [Some(1), Some(2), Some(1), Some(2), Some(1)].into_iter().for_each(|path| bench.push(path));
        assert_eq!(bench.take(8, 1), Some((Some(1), vec![0, 2, 4], vec![])));
        assert_eq!(bench.take(8, 1), Some((Some(2), vec![1, 3], vec![])));
        assert_eq!(bench.take(8, 1), None);
    }

    #[test]
    fn paths_that_mix_make_a_batch_with_the_first() {
        let mut bench = Bench::new();
        [101, 100, 1, 102, 101, 100, 102, 102].into_iter().for_each(|path| bench.push(Some(path)));
        let batch = bench.line.take(8, 1, bench.now).unwrap();
        assert_eq!((batch.kind, batch.items.len()), (Some(101), 2));
        let others: Vec<(Path, Vec<usize>)> = batch
            .others
            .iter()
            .map(|(path, items)| (*path, items.iter().map(|(_, item)| item.name).collect()))
            .collect();
        assert_eq!(others, [(Some(100), vec![1, 5])], "102 has too many, and 1 does not mix");
        assert_eq!(bench.run(8, 1), [2]);
        assert_eq!(bench.run(8, 1), [3, 6, 7]);
        assert!(bench.line.is_empty());
        [100, 101, 102, 101].into_iter().for_each(|path| bench.push(Some(path)));
        assert_eq!(bench.run(8, 2), [8, 9], "the other worker gets its share");
        assert_eq!(bench.run(2, 1), [10, 11], "never more than a batch");
    }

    #[test]
    fn the_policy_looks_before_paths_run_and_an_image_keeps_its_age() {
        let mut bench = Bench::new();
        [None, Some(1), None].into_iter().for_each(|path| bench.push(path));
        let batch = bench.line.take(8, 1, bench.now).unwrap();
        assert_eq!(batch.kind, None);
        assert_eq!(batch.items.len(), 2);
        batch.items.into_iter().for_each(|(place, item)| bench.line.put_back(Some(2), place, item));
        bench.push(Some(2));
        assert_eq!(bench.run(8, 1), [0, 2, 3], "the image that came first goes first, with its like");
        assert_eq!(bench.run(8, 1), [1]);
    }

    #[test]
    fn the_other_workers_get_their_share() {
        let mut bench = Bench::new();
        (0..5).for_each(|_| bench.push(Some(1)));
        assert_eq!(bench.run(8, 2), [0, 1, 2]);
        assert_eq!(bench.run(8, 2), [3]);
        assert_eq!(bench.run(8, 2), [4]);
        (0..5).for_each(|_| bench.push(Some(1)));
        assert_eq!(bench.run(2, 1), [5, 6], "never more than a batch");
    }

    #[test]
    fn a_rare_path_is_not_starved_by_a_common_one() {
        let mut bench = Bench::new();
        (0..20).for_each(|_| bench.push(Some(1)));
        bench.push(Some(9));
        let mut taken = 0;
        while !bench.run(4, 1).contains(&20) {
            taken += 1;
            (0..4).for_each(|_| bench.push(Some(1))); // as many come as go
            assert!(taken <= 5, "only what was there before it may go before it");
        }
    }

    #[test]
    fn what_is_not_wanted_any_more_makes_room_for_what_is() {
        let mut bench = Bench::new();
        bench.push_for(Some(1), 0, 5);
        bench.push(Some(1));
        bench.push_for(Some(1), 0, 5);
        bench.push(Some(1));
        bench.now += Duration::from_secs(5);
        assert_eq!(bench.take(2, 1), Some((Some(1), vec![1, 3], vec![0, 2])));
        bench.push_for(None, 0, 0);
        assert_eq!(bench.take(2, 1), Some((None, vec![], vec![4])));
        assert!(bench.line.is_empty());
    }

    #[test]
    fn one_that_floods_lets_others_in_between_whatever_its_images_paths_are() {
        let mut bench = Bench::new();
        (0..40u8).for_each(|path| bench.push_for(Some(path % 7), 1, 1000));
        assert_eq!(bench.run(8, 1), [0, 7, 14, 21, 28, 35]);
        bench.push_for(None, 2, 1000);
        let batch = bench.line.take(8, 1, bench.now).unwrap();
        batch.items.into_iter().for_each(|(place, item)| bench.line.put_back(Some(9), place, item));
        assert_eq!(bench.run(8, 1), [1, 8, 15, 22, 29, 36], "the flood's first goes before it");
        assert_eq!(bench.run(8, 1), [40], "and nothing else of it");
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Of this flow, or of one that nobody has seen.
        Push(Path, Option<u64>, u64),
        /// Takes; what was to be looked at goes back as this path, unless that failed.
        Take(u8, bool),
        Wait(u64),
    }

    fn path() -> impl Strategy<Value = u8> {
        prop_oneof![0u8..4, 100u8..104]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (prop::option::of(path()), prop::option::of(0u64..3), 0u64..20)
                .prop_map(|(path, flow, seconds)| Step::Push(path, flow, seconds)),
            (path(), prop::bool::weighted(0.9)).prop_map(|(path, looked)| Step::Take(path, looked)),
            (0u64..5).prop_map(Step::Wait),
        ]
    }

    struct Waiting {
        place: Place,
        name: usize,
        flow: u64,
        path: Path,
    }

    impl Bench {
        /// Pushes an item, and finds out its place.
        fn placed(&mut self, path: Path, flow: u64, seconds: u64) -> Waiting {
            let name = self.pushed;
            self.push_for(path, flow, seconds);
            let mut group = self.line.groups[&path].iter();
            let place = group.find_map(|(&place, item)| (item.name == name).then_some(place)).unwrap();
            Waiting { place, name, flow, path }
        }
    }

    proptest! {
        /// Against a plain list of what waits: every item comes out of its last stage once, run or given up; a batch is
        /// of one kind, or of kinds that mix, within its bounds, in the order of places and never without the first of its stage; only what is
        /// too late is given up. Places of one flow are by age, and a new flow's is behind at most one item of each other.
        #[test]
        fn the_line_is_that_of_a_plain_list(
            steps in prop::collection::vec(step(), 0..120), most in 1usize..9, workers in 1usize..4,
        ) {
            const NEW: u64 = 100;
            let mut bench = Bench::new();
            let mut waiting: Vec<Waiting> = Vec::new();
            let mut out: Vec<usize> = Vec::new();
            let pushes = steps.iter().filter(|step| matches!(step, Step::Push(..))).count();
            let drain = std::iter::repeat_n(Step::Take(0, true), 2 * pushes + 1);
            for step in steps.into_iter().chain(drain) {
                match step {
                    Step::Push(path, flow, seconds) => {
                        let new = bench.placed(path, flow.unwrap_or(NEW + bench.pushed as u64), seconds);
                        let before = |other: &&Waiting| other.place < new.place;
                        prop_assert!(waiting.iter().filter(|other| other.flow == new.flow).all(|other| before(&other)));
                        if flow.is_none() {
                            let mut flows: Vec<u64> = waiting.iter().filter(before).map(|other| other.flow).collect();
                            flows.sort_unstable();
                            prop_assert!(flows.windows(2).all(|pair| pair[0] != pair[1]), "{:?}", flows);
                        }
                        waiting.push(new);
                    }
                    Step::Wait(seconds) => bench.now += Duration::from_secs(seconds),
                    Step::Take(decided, looked) => {
                        let Some(batch) = bench.line.take(most, workers, bench.now) else {
                            prop_assert!(waiting.is_empty());
                            continue;
                        };
                        let stage = batch.kind.stage();
                        prop_assert!(stage == Stage::Look || waiting.iter().all(|item| item.path.is_some()));
                        let in_stage = || waiting.iter().filter(|item| item.path.stage() == stage);
                        let first = in_stage().min_by_key(|item| item.place).map(|item| item.name);
                        let groups = || std::iter::once((&batch.kind, &batch.items))
                            .chain(batch.others.iter().map(|(path, items)| (path, items)));
                        prop_assert!(groups().all(|(_, items)| items.is_sorted_by_key(|(place, _)| *place)));
                        prop_assert!(groups().skip(1).all(|(path, items)| batch.kind.mixes(path) && !items.is_empty()));
                        prop_assert!(batch.all().count() <= most.min(in_stage().count().div_ceil(workers)));
                        let names: Vec<usize> = batch.all().map(|(_, item)| item.name).collect();
                        let paths: HashMap<usize, Path> = groups()
                            .flat_map(|(path, items)| items.iter().map(move |(_, item)| (item.name, *path)))
                            .collect();
                        let lasts: Vec<(Path, Option<Place>)> =
                            groups().map(|(path, items)| (*path, items.last().map(|(place, _)| *place))).collect();
                        let gone: Vec<usize> = batch.unwanted.iter().map(|item| item.name).collect();
                        prop_assert!(names.iter().chain(&gone).any(|name| Some(*name) == first));
                        for (_, item) in batch.all() {
                            prop_assert!(item.is_wanted(bench.now));
                        }
                        for item in &batch.unwanted {
                            prop_assert!(!item.is_wanted(bench.now));
                        }
                        for name in names.iter().chain(&gone) {
                            let at = waiting.iter().position(|other| other.name == *name);
                            let path = waiting.remove(at.expect("it waits")).path;
                            prop_assert_eq!(path, paths.get(name).copied().unwrap_or(path));
                            prop_assert!(path == batch.kind || batch.kind.mixes(&path));
                        }
                        for (path, last) in lasts {
                            let mut left = waiting.iter().filter(|item| item.path == path);
                            prop_assert!(left.all(|item| Some(item.place) > last), "the first of their kind were taken");
                        }
                        out.extend(&gone);
                        for (place, item) in batch.items.into_iter().chain(batch.others.into_iter().flat_map(|(_, items)| items)) {
                            if stage == Stage::Look && looked {
                                let Item { name, flow, .. } = item;
                                waiting.push(Waiting { place, name, flow, path: Some(decided) });
                                bench.line.put_back(Some(decided), place, item);
                            } else {
                                out.push(item.name);
                            }
                        }
                    }
                }
            }
            out.sort_unstable();
            prop_assert_eq!(out, (0..bench.pushed).collect::<Vec<_>>());
            prop_assert!(bench.line.is_empty() && bench.line.groups.is_empty());
            prop_assert_eq!((bench.line.waiting, bench.line.flows.active()), ([0, 0], 0));
        }
    }
}
