//! A persistent ordered map: a clone costs one reference count, a change copies the path to it and nothing else.
//!
//! It is a treap: a search tree by key that is a heap by a pseudo-random rank, which keeps its depth logarithmic
//! whatever the order of insertion.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Debug)]
pub(super) struct Map<K, V>(Option<Arc<Entry<K, V>>>);

#[derive(Debug, Clone)]
struct Entry<K, V> {
    key: K,
    value: V,
    rank: u64,
    left: Map<K, V>,
    right: Map<K, V>,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The next rank: `SplitMix64` over a counter (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
fn next_rank() -> u64 {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut z = COUNTER.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl<K, V> Map<K, V> {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// In order of keys.
    pub(super) fn iter(&self) -> Iter<'_, K, V> {
        let mut iter = Iter { above: Vec::new() };
        iter.descend(self);
        iter
    }

    /// Takes the map apart and hands out the values that nobody else holds a map of.
    pub(super) fn dismantle(self, take: &mut impl FnMut(V)) {
        if let Some(entry) = self.0.and_then(Arc::into_inner) {
            entry.left.dismantle(take);
            take(entry.value);
            entry.right.dismantle(take);
        }
    }
}

impl<K: Ord + Clone, V: Clone> Map<K, V> {
    pub(super) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut at = self;
        while let Some(entry) = &at.0 {
            at = match key.cmp(entry.key.borrow()) {
                std::cmp::Ordering::Less => &entry.left,
                std::cmp::Ordering::Greater => &entry.right,
                std::cmp::Ordering::Equal => return Some(&entry.value),
            };
        }
        None
    }

    /// Copies what is shared with others on the way to `key`; nothing when it is not there.
    pub(super) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        let mut at = self;
        loop {
            let entry = Arc::make_mut(at.0.as_mut()?);
            at = match key.cmp(entry.key.borrow()) {
                std::cmp::Ordering::Less => &mut entry.left,
                std::cmp::Ordering::Greater => &mut entry.right,
                std::cmp::Ordering::Equal => return Some(&mut entry.value),
            };
        }
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if let Some(there) = self.get_mut(&key) {
            *there = value;
            return;
        }
        let (less, greater) = std::mem::take(self).split(&key);
        let new = Entry { key, value, rank: next_rank(), left: Self(None), right: Self(None) };
        *self = less.merge(Self(Some(Arc::new(new)))).merge(greater);
    }

    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        self.remove_present(key)
    }

    fn remove_present<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entry = Arc::make_mut(self.0.as_mut()?);
        match key.cmp(entry.key.borrow()) {
            std::cmp::Ordering::Less => return entry.left.remove_present(key),
            std::cmp::Ordering::Greater => return entry.right.remove_present(key),
            std::cmp::Ordering::Equal => {}
        }
        let entry = Arc::unwrap_or_clone(self.0.take()?);
        *self = entry.left.merge(entry.right);
        Some(entry.value)
    }

    /// Everything below `key`, and everything above; `key` itself must not be there.
    fn split(mut self, key: &K) -> (Self, Self) {
        let Some(arc) = &mut self.0 else { return (Self(None), Self(None)) };
        let entry = Arc::make_mut(arc);
        if entry.key < *key {
            let (less, greater) = std::mem::take(&mut entry.right).split(key);
            entry.right = less;
            (self, greater)
        } else {
            let (less, greater) = std::mem::take(&mut entry.left).split(key);
            entry.left = greater;
            (less, self)
        }
    }

    /// All keys of `self` are below all keys of `other`.
    fn merge(mut self, mut other: Self) -> Self {
        match (&mut self.0, &mut other.0) {
            (None, _) => other,
            (_, None) => self,
            (Some(a), Some(b)) if a.rank > b.rank => {
                let entry = Arc::make_mut(a);
                entry.right = std::mem::take(&mut entry.right).merge(other);
                self
            }
            (_, Some(b)) => {
                let entry = Arc::make_mut(b);
                entry.left = self.merge(std::mem::take(&mut entry.left));
                other
            }
        }
    }
}

/// In order of keys.
pub(super) struct Iter<'a, K, V> {
    above: Vec<&'a Entry<K, V>>,
}

impl<'a, K, V> Iter<'a, K, V> {
    fn descend(&mut self, map: &'a Map<K, V>) {
        let mut at = map;
        while let Some(entry) = &at.0 {
            self.above.push(entry);
            at = &entry.left;
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.above.pop()?;
        self.descend(&entry.right);
        Some((&entry.key, &entry.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn depth<K, V>(map: &Map<K, V>) -> usize {
        map.0.as_ref().map_or(0, |e| 1 + depth(&e.left).max(depth(&e.right)))
    }

    #[test]
    fn ordered_insertion_does_not_degenerate() {
        let mut map = Map::default();
        for n in 0..10_000 {
            map.insert(n, ());
        }
        assert!(depth(&map) < 64, "{}", depth(&map));
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_its_clones_are_snapshots(
            ops in proptest::collection::vec((any::<bool>(), 0u8..32, any::<u8>()), 0..200)
        ) {
            let (mut map, mut model, mut kept) = (Map::default(), BTreeMap::new(), Vec::new());
            for (insert, key, value) in ops {
                if insert {
                    map.insert(key, value);
                    model.insert(key, value);
                } else {
                    prop_assert_eq!(map.remove(&key), model.remove(&key));
                }
                kept.push((map.clone(), model.clone()));
            }
            for (map, model) in kept {
                prop_assert!(map.iter().eq(model.iter()));
                for key in 0..32 {
                    prop_assert_eq!(map.get(&key), model.get(&key));
                }
            }
        }
    }
}
