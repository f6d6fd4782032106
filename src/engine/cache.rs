//! A cache bounded in bytes that lends what it holds: several equal values a key, evicted by recency.

use std::collections::HashMap;
use std::hash::Hash;

/// What knows how many bytes it takes.
pub(super) trait Weigh {
    fn bytes(&self) -> u64;
}

/// Values by key, each lent to one borrower at a time. What is lent counts as held until it comes back.
pub(super) struct Cache<K, V> {
    /// Bytes at most.
    limit: u64,
    /// Held and reserved.
    bytes: u64,
    /// Counts uses.
    clock: u64,
    entries: HashMap<K, Entry<V>>,
}

struct Entry<V> {
    idle: Vec<V>,
    lent: usize,
    lent_bytes: u64,
    /// When it was taken last.
    used: u64,
    /// Never evicted.
    pinned: bool,
}

/// A key to make room by, and how many of its values.
type Victims<K> = Vec<(K, usize)>;

impl<K: Clone + Eq + Hash, V: Weigh> Cache<K, V> {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, bytes: 0, clock: 0, entries: HashMap::new() }
    }

    /// Bytes held, what is lent or reserved included.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Values of `key`, lent ones included.
    pub(super) fn count(&self, key: &K) -> usize {
        self.entries.get(key).map_or(0, |entry| entry.idle.len() + entry.lent)
    }

    /// Borrows a value of `key`, if one is idle.
    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        self.entries.get_mut(key)?.used = self.clock;
        self.take_unnoticed(key)
    }

    /// [`take`](Self::take) that does not count as use.
    pub(super) fn take_unnoticed(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        let value = entry.idle.pop()?;
        entry.lent += 1;
        entry.lent_bytes += value.bytes();
        Some(value)
    }

    /// Takes back what [`take`](Self::take) lent; gives it out again where its key was forgotten meanwhile.
    pub(super) fn give_back(&mut self, key: &K, value: V) -> Option<V> {
        let Some(entry) = self.entries.get_mut(key) else { return Some(value) };
        entry.lent -= 1;
        entry.lent_bytes -= value.bytes();
        entry.idle.push(value);
        None
    }

    /// A borrowed value does not come back.
    pub(super) fn lose(&mut self, key: &K, value: &V) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.lent -= 1;
        entry.lent_bytes -= value.bytes();
        self.bytes -= value.bytes();
        self.drop_if_empty(key);
    }

    fn drop_if_empty(&mut self, key: &K) {
        if self.count(key) == 0 {
            self.entries.remove(key);
        }
    }

    /// What has to go so that `bytes` more fit for `key`: idle values of those other keys that `may_go`, the least
    /// recently taken first. `may_go` is told how many values were asked for since the key's were. `None` where even
    /// that is not enough.
    pub(super) fn victims(&self, key: &K, bytes: u64, may_go: impl Fn(&K, u64) -> bool) -> Option<Victims<K>> {
        let mut excess = (self.bytes + bytes).saturating_sub(self.limit);
        if excess == 0 {
            return Some(Vec::new());
        }
        let others = self.entries.iter().filter(|(other, entry)| *other != key && !entry.pinned);
        let mut oldest: Vec<(&K, &Entry<V>)> =
            others.filter(|(other, entry)| may_go(other, self.clock - entry.used)).collect();
        oldest.sort_unstable_by_key(|(_, entry)| entry.used);
        let mut victims = Vec::new();
        for (other, entry) in oldest {
            let mut count = 0;
            for value in entry.idle.iter().rev() {
                if excess == 0 {
                    break;
                }
                count += 1;
                excess = excess.saturating_sub(value.bytes());
            }
            if count > 0 {
                victims.push((other.clone(), count));
            }
        }
        (excess == 0).then_some(victims)
    }

    /// Reserves `bytes` for `key` and gives out the `victims` that have to go for it.
    pub(super) fn reserve(&mut self, bytes: u64, victims: Victims<K>) -> Vec<V> {
        let mut evicted = Vec::new();
        for (key, count) in victims {
            let entry = self.entries.get_mut(&key).expect("a victim is held");
            let kept = entry.idle.len() - count;
            evicted.extend(entry.idle.drain(kept..));
            self.drop_if_empty(&key);
        }
        self.bytes -= evicted.iter().map(Weigh::bytes).sum::<u64>();
        self.bytes += bytes;
        evicted
    }

    /// Gives a reservation up.
    pub(super) fn release(&mut self, bytes: u64) {
        self.bytes -= bytes;
    }

    /// Adds a value that `reserved` bytes were reserved for.
    pub(super) fn insert(&mut self, key: K, value: V, reserved: u64, pinned: bool) {
        self.bytes = self.bytes - reserved + value.bytes();
        self.clock += 1;
        let fresh = || Entry { idle: Vec::new(), lent: 0, lent_bytes: 0, used: 0, pinned };
        let entry = self.entries.entry(key).or_insert_with(fresh);
        entry.used = self.clock;
        entry.idle.push(value);
    }

    /// Gives out all idle values of the keys that match; lent ones are not taken back any more.
    pub(super) fn forget(&mut self, matches: impl Fn(&K) -> bool) -> Vec<V> {
        let gone = self.entries.extract_if(|key, _| matches(key));
        let mut values = Vec::new();
        for (_, entry) in gone {
            self.bytes -= entry.lent_bytes + entry.idle.iter().map(Weigh::bytes).sum::<u64>();
            values.extend(entry.idle);
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A name and bytes.
    type Value = (usize, u64);

    impl Weigh for Value {
        fn bytes(&self) -> u64 {
            self.1
        }
    }

    /// Inserts a value by evicting what has to go; `None` where that is not enough.
    fn put(cache: &mut Cache<char, Value>, key: char, value: Value, pinned: bool) -> Option<Vec<usize>> {
        let victims = cache.victims(&key, value.1, |_, _| true)?;
        let evicted = cache.reserve(value.1, victims);
        cache.insert(key, value, value.1, pinned);
        Some(evicted.into_iter().map(|(name, _)| name).collect())
    }

    fn filled(limit: u64, values: &[(char, u64)]) -> Cache<char, Value> {
        let mut cache = Cache::new(limit);
        for (name, &(key, bytes)) in values.iter().enumerate() {
            assert_eq!(put(&mut cache, key, (name, bytes), false), Some(vec![]));
        }
        cache
    }

    #[test]
    fn the_least_recently_taken_goes_first() {
        let mut cache = filled(30, &[('a', 10), ('b', 10), ('c', 10)]);
        let a = cache.take(&'a').unwrap();
        assert_eq!(cache.give_back(&'a', a), None);
        assert_eq!(put(&mut cache, 'd', (9, 10), false), Some(vec![1]), "b was taken longest ago");
        assert_eq!(cache.take(&'b'), None);
        assert_eq!(cache.bytes(), 30);
    }

    #[test]
    fn what_may_not_go_or_is_lent_or_pinned_stays() {
        let mut cache = filled(30, &[('a', 10), ('b', 10)]);
        assert_eq!(put(&mut cache, 'f', (8, 10), true), Some(vec![]));
        assert_eq!(cache.take(&'a'), Some((0, 10)));
        assert_eq!(put(&mut cache, 'd', (9, 20), false), None, "only b could go");
        assert_eq!(cache.victims(&'d', 10, |key, _| *key != 'b'), None);
        assert_eq!(put(&mut cache, 'd', (9, 10), false), Some(vec![1]));
        assert_eq!(cache.give_back(&'a', (0, 10)), None);
        assert_eq!((cache.count(&'a'), cache.count(&'f')), (1, 1));
    }

    #[test]
    fn a_key_holds_values_of_several_sizes_and_loses_only_as_many_as_needed() {
        let mut cache = filled(30, &[('a', 5), ('a', 15), ('b', 10)]);
        assert_eq!((cache.take(&'a'), cache.take(&'a'), cache.take(&'a')), (Some((1, 15)), Some((0, 5)), None));
        cache.lose(&'a', &(1, 15));
        assert_eq!(cache.give_back(&'a', (0, 5)), None);
        assert_eq!((cache.count(&'a'), cache.bytes()), (1, 15));
        assert_eq!(put(&mut cache, 'c', (7, 20), false), Some(vec![2]), "b was put in before a was taken");
    }

    #[test]
    fn how_long_a_key_was_not_asked_for_is_told() {
        let mut cache = filled(20, &[('a', 10), ('b', 10)]);
        for _ in 0..5 {
            let a = cache.take(&'a').unwrap();
            assert_eq!(cache.give_back(&'a', a), None);
        }
        assert_eq!(cache.victims(&'c', 10, |_, idle| idle >= 5), Some(vec![('b', 1)]));
        assert_eq!(cache.victims(&'c', 10, |_, idle| idle >= 6), None);
    }

    #[test]
    fn what_is_taken_unnoticed_is_lent_and_not_used() {
        let mut cache = filled(20, &[('a', 10), ('b', 10)]);
        let a = cache.take_unnoticed(&'a').unwrap();
        assert_eq!(cache.take_unnoticed(&'a'), None);
        assert_eq!(cache.victims(&'c', 10, |_, _| true), Some(vec![('b', 1)]), "what is lent stays");
        assert_eq!(cache.give_back(&'a', a), None);
        assert_eq!(cache.victims(&'c', 10, |_, idle| idle >= 1), Some(vec![('a', 1)]), "it is still the oldest");
        assert_eq!(cache.victims(&'c', 10, |_, idle| idle >= 2), None, "only b came after it");
    }

    #[test]
    fn what_is_reserved_is_not_free_until_it_is_released() {
        let mut cache = filled(30, &[('a', 10)]);
        assert_eq!(cache.reserve(20, Vec::new()), vec![]);
        assert_eq!(cache.victims(&'b', 10, |_, _| true), Some(vec![('a', 1)]));
        cache.release(20);
        assert_eq!(cache.victims(&'b', 10, |_, _| true), Some(vec![]));
        assert_eq!(cache.bytes(), 10);
    }

    #[test]
    fn what_was_forgotten_comes_back_for_good() {
        let mut cache = filled(30, &[('a', 10), ('b', 10), ('b', 10)]);
        let b = cache.take(&'b').unwrap();
        assert_eq!(cache.forget(|key| *key == 'b'), vec![(1, 10)]);
        assert_eq!(cache.bytes(), 10);
        assert_eq!(cache.give_back(&'b', b), Some(b));
        cache.lose(&'b', &b);
        assert_eq!(cache.bytes(), 10);
    }

    proptest! {
        /// Whatever happens, the bytes are those of what is held, within the limit, and no value is there twice.
        #[test]
        fn bytes_are_bounded_and_nothing_is_lent_twice(
            limit in 0u64..60, steps in prop::collection::vec((0u8..5, 0u8..5, 1u64..12), 0..80),
        ) {
            let mut cache = Cache::new(limit);
            let mut lent: Vec<(char, Value)> = Vec::new();
            let mut alive: HashMap<usize, u64> = HashMap::new();
            for (name, (step, key, bytes)) in steps.into_iter().enumerate() {
                let key = char::from(b'a' + key);
                match step {
                    0 | 1 => if let Some(evicted) = put(&mut cache, key, (name, bytes), false) {
                        alive.insert(name, bytes);
                        for name in evicted {
                            prop_assert!(alive.remove(&name).is_some());
                            prop_assert!(lent.iter().all(|(_, (borrowed, _))| *borrowed != name));
                        }
                    },
                    2 => if let Some(value) = cache.take(&key) {
                        prop_assert!(alive.contains_key(&value.0));
                        prop_assert!(lent.iter().all(|(_, borrowed)| *borrowed != value));
                        lent.push((key, value));
                    },
                    3 => if let Some((key, value)) = lent.pop() {
                        prop_assert_eq!(cache.give_back(&key, value), None);
                    },
                    _ => if let Some((key, value)) = lent.pop() {
                        cache.lose(&key, &value);
                        alive.remove(&value.0);
                    },
                }
                prop_assert_eq!(cache.bytes(), alive.values().sum::<u64>());
                prop_assert!(cache.bytes() <= limit);
            }
        }
    }
}
