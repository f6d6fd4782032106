//! A cache bounded in bytes that lends what it holds: several equal values a key, evicted by recency.

use std::collections::HashMap;
use std::hash::Hash;

/// Values by key, each lent to one borrower at a time. What is lent counts as held until it comes back.
pub(super) struct Cache<K, V> {
    /// Bytes at most.
    limit: u64,
    bytes: u64,
    /// Counts uses.
    clock: u64,
    entries: HashMap<K, Entry<V>>,
}

struct Entry<V> {
    idle: Vec<V>,
    lent: usize,
    /// Bytes of each value.
    each: u64,
    /// When it was taken last.
    used: u64,
    /// Never evicted.
    pinned: bool,
}

/// A key to make room by, and how many of its values.
type Victims<K> = Vec<(K, usize)>;

impl<K: Clone + Eq + Hash, V> Cache<K, V> {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, bytes: 0, clock: 0, entries: HashMap::new() }
    }

    /// Bytes held, what is lent included.
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
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        let value = entry.idle.pop()?;
        entry.lent += 1;
        Some(value)
    }

    /// Takes back what [`take`](Self::take) lent; gives it out again where its key was forgotten meanwhile.
    pub(super) fn give_back(&mut self, key: &K, value: V) -> Option<V> {
        let Some(entry) = self.entries.get_mut(key) else { return Some(value) };
        entry.lent -= 1;
        entry.idle.push(value);
        None
    }

    /// A borrowed value is no more.
    pub(super) fn lose(&mut self, key: &K) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.lent -= 1;
        self.bytes -= entry.each;
        if entry.lent == 0 && entry.idle.is_empty() {
            self.entries.remove(key);
        }
    }

    /// What has to go so that `bytes` more fit for `key`: idle values of other keys, the least recently taken first.
    /// `None` where even that is not enough.
    pub(super) fn victims(&self, key: &K, bytes: u64) -> Option<Victims<K>> {
        let mut excess = (self.bytes + bytes).saturating_sub(self.limit);
        let mut oldest: Vec<(&K, &Entry<V>)> =
            self.entries.iter().filter(|(other, entry)| *other != key && !entry.pinned).collect();
        oldest.sort_unstable_by_key(|(_, entry)| entry.used);
        let mut victims = Vec::new();
        for (other, entry) in oldest {
            if excess == 0 {
                break;
            }
            let count = entry.idle.len().min(excess.div_ceil(entry.each.max(1)) as usize);
            if count > 0 {
                excess = excess.saturating_sub(count as u64 * entry.each);
                victims.push((other.clone(), count));
            }
        }
        (excess == 0).then_some(victims)
    }

    /// Gives out what has to go so that `bytes` more fit for `key`; `None`, and nothing goes, where that is not enough.
    pub(super) fn make_room(&mut self, key: &K, bytes: u64) -> Option<Vec<V>> {
        let mut evicted = Vec::new();
        for (key, count) in self.victims(key, bytes)? {
            let entry = self.entries.get_mut(&key).expect("a victim is held");
            evicted.extend(entry.idle.drain(..count));
            self.bytes -= count as u64 * entry.each;
            if entry.lent == 0 && entry.idle.is_empty() {
                self.entries.remove(&key);
            }
        }
        Some(evicted)
    }

    /// Adds a value of `bytes` bytes and gives out those that had to go for it.
    ///
    /// # Errors
    /// Gives the value back where there is no room for it.
    pub(super) fn insert(&mut self, key: K, value: V, bytes: u64, pinned: bool) -> Result<Vec<V>, V> {
        let Some(evicted) = self.make_room(&key, bytes) else { return Err(value) };
        self.clock += 1;
        let fresh = || Entry { idle: Vec::new(), lent: 0, each: bytes, used: 0, pinned };
        let entry = self.entries.entry(key).or_insert_with(fresh);
        entry.used = self.clock;
        entry.idle.push(value);
        self.bytes += entry.each;
        Ok(evicted)
    }

    /// Gives out all idle values of the keys that match; lent ones are not taken back any more.
    pub(super) fn forget(&mut self, matches: impl Fn(&K) -> bool) -> Vec<V> {
        let gone = self.entries.extract_if(|key, _| matches(key));
        let mut values = Vec::new();
        for (_, entry) in gone {
            self.bytes -= (entry.idle.len() + entry.lent) as u64 * entry.each;
            values.extend(entry.idle);
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(limit: u64, values: &[(char, u64)]) -> Cache<char, u32> {
        let mut cache = Cache::new(limit);
        for (number, &(key, bytes)) in values.iter().enumerate() {
            assert_eq!(cache.insert(key, number as u32, bytes, false), Ok(vec![]));
        }
        cache
    }

    #[test]
    fn the_least_recently_taken_goes_first() {
        let mut cache = filled(30, &[('a', 10), ('b', 10), ('c', 10)]);
        let a = cache.take(&'a').unwrap();
        assert_eq!(cache.give_back(&'a', a), None);
        assert_eq!(cache.insert('d', 9, 10, false), Ok(vec![1]), "b was taken longest ago");
        assert_eq!(cache.take(&'b'), None);
        assert_eq!(cache.bytes(), 30);
    }

    #[test]
    fn what_is_lent_or_pinned_stays() {
        let mut cache = filled(30, &[('a', 10), ('b', 10)]);
        assert_eq!(cache.insert('f', 8, 10, true), Ok(vec![]));
        assert_eq!(cache.take(&'a'), Some(0));
        assert_eq!(cache.insert('d', 9, 20, false), Err(9), "only b could go");
        assert_eq!(cache.insert('d', 9, 10, false), Ok(vec![1]));
        assert_eq!(cache.give_back(&'a', 0), None);
        assert_eq!(cache.count(&'a'), 1);
        assert_eq!(cache.count(&'f'), 1);
    }

    #[test]
    fn a_key_holds_several_values_and_loses_only_as_many_as_needed() {
        let mut cache = filled(30, &[('a', 10), ('a', 10), ('b', 10)]);
        assert_eq!((cache.take(&'a'), cache.take(&'a'), cache.take(&'a')), (Some(1), Some(0), None));
        cache.lose(&'a');
        assert_eq!(cache.give_back(&'a', 0), None);
        assert_eq!((cache.count(&'a'), cache.bytes()), (1, 20));
        assert_eq!(cache.insert('c', 7, 20, false).unwrap().len(), 1);
    }

    #[test]
    fn what_was_forgotten_comes_back_for_good() {
        let mut cache = filled(30, &[('a', 10), ('b', 10), ('b', 10)]);
        let b = cache.take(&'b').unwrap();
        assert_eq!(cache.forget(|key| *key == 'b'), vec![1]);
        assert_eq!(cache.bytes(), 10);
        assert_eq!(cache.give_back(&'b', b), Some(b));
        assert_eq!(cache.bytes(), 10);
    }

    proptest! {
        /// Whatever happens, the bytes are those of what is held, within the limit, and no value is there twice.
        #[test]
        fn bytes_are_bounded_and_nothing_is_lent_twice(
            limit in 0u64..60, steps in prop::collection::vec((0u8..4, 0u8..5, 1u64..12), 0..80),
        ) {
            let mut cache = Cache::new(limit);
            let mut lent: Vec<(u8, usize)> = Vec::new();
            let mut alive: HashMap<usize, u64> = HashMap::new();
            for (number, (step, key, bytes)) in steps.into_iter().enumerate() {
                let bytes = if cache.count(&key) > 0 { cache.entries[&key].each } else { bytes };
                match step {
                    0 | 1 => match cache.insert(key, number, bytes, false) {
                        Ok(evicted) => {
                            alive.insert(number, bytes);
                            for value in evicted {
                                prop_assert!(alive.remove(&value).is_some());
                                prop_assert!(lent.iter().all(|(_, borrowed)| *borrowed != value));
                            }
                        }
                        Err(back) => prop_assert_eq!(back, number),
                    },
                    2 => if let Some(value) = cache.take(&key) {
                        prop_assert!(alive.contains_key(&value));
                        prop_assert!(lent.iter().all(|(_, borrowed)| *borrowed != value));
                        lent.push((key, value));
                    },
                    _ => if let Some((key, value)) = lent.pop() {
                        prop_assert_eq!(cache.give_back(&key, value), None);
                    },
                }
                prop_assert_eq!(cache.bytes(), alive.values().sum::<u64>());
                prop_assert!(cache.bytes() <= limit);
            }
        }
    }
}
