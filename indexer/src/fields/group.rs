//! Groups of hits: the nearest of each of several values of a field, not the nearest of all.
//!
//! Hits come in rising distance, so the groups found first are the nearest ones, and the first
//! hits of a group are its best. What cannot be known from some hits is whether the next ones
//! would fill a group that is short; [`Groups::needs`] says what to search for then.

use std::collections::BTreeMap;

use shoal_schemas::Value;

/// A value that hits share: what a filter's `In` takes for equal is equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shared {
    /// A text.
    Text(String),
    /// A whole number, or a float that is one.
    Whole(i64),
    /// Another float, by its bits.
    Float(u64),
    /// True or false.
    Boolean(bool),
    /// Milliseconds since the Unix epoch.
    Timestamp(i64),
}

/// Groups that are being filled.
#[derive(Clone, Debug)]
pub struct Groups<V, H> {
    limit: usize,
    hits_each: usize,
    /// In the order of their nearest hits.
    groups: Vec<Group<V, H>>,
    places: BTreeMap<V, usize>,
    short: usize,
}

/// Hits that share a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group<V, H> {
    /// The value.
    pub value: V,
    /// Nearest first, at least one.
    pub hits: Vec<H>,
}

/// What else may belong into the groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needs<'a, V> {
    /// Nothing: every group is full.
    Nothing,
    /// There are fewer groups than asked for: hits of any value but those of full groups.
    NotOf(Vec<&'a V>),
    /// There are all groups, and these are short of hits.
    Of(Vec<&'a V>),
}

impl Shared {
    /// What points with this value have in common: for a list each of its items.
    pub fn of(value: &Value) -> Vec<Self> {
        match value {
            Value::String(text) => vec![Self::Text(text.clone())],
            Value::Strings(texts) => texts.iter().cloned().map(Self::Text).collect(),
            Value::Integer(number) => vec![Self::Whole(*number)],
            Value::Float(number) => vec![Self::of_float(*number)],
            Value::Boolean(truth) => vec![Self::Boolean(*truth)],
            Value::Timestamp(millis) => vec![Self::Timestamp(*millis)],
        }
    }

    /// As a value again: for an answer, or for a filter that asks for more of it.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Text(text) => Value::String(text.clone()),
            Self::Whole(number) => Value::Integer(*number),
            Self::Float(bits) => Value::Float(f64::from_bits(*bits)),
            Self::Boolean(truth) => Value::Boolean(*truth),
            Self::Timestamp(millis) => Value::Timestamp(*millis),
        }
    }

    fn of_float(number: f64) -> Self {
        /// 2^63, which no `i64` reaches.
        const ABOVE: f64 = 9_223_372_036_854_775_808.0;
        let is_whole = number.fract() == 0.0 && (-ABOVE..ABOVE).contains(&number);
        #[expect(
            clippy::as_conversions,
            reason = "a whole float within the range of i64 converts exactly"
        )]
        match is_whole {
            true => Self::Whole(number as i64),
            false => Self::Float(number.to_bits()),
        }
    }
}

impl<V: Ord + Clone, H: Clone> Groups<V, H> {
    /// For `limit` groups of `hits_each` hits.
    pub fn new(limit: usize, hits_each: usize) -> Self {
        Self {
            limit,
            hits_each,
            groups: Vec::new(),
            places: BTreeMap::new(),
            short: 0,
        }
    }

    /// Takes the next hit, no nearer than the ones before, into the group of each of its values:
    /// a list of texts has several, a point without the field none. False if no group took it.
    pub fn offer(&mut self, hit: &H, values: impl IntoIterator<Item = V>) -> bool {
        let mut is_taken = false;
        let mut seen: Vec<usize> = Vec::new();
        if self.hits_each == 0 {
            return false;
        }
        for value in values {
            let place = match self.places.get(&value) {
                Some(place) => *place,
                None if self.groups.len() < self.limit => {
                    let place = self.groups.len();
                    self.places.insert(value.clone(), place);
                    let hits = Vec::new();
                    self.groups.push(Group { value, hits });
                    self.short += 1;
                    place
                }
                None => continue,
            };
            // A value that is named twice counts once.
            if seen.contains(&place) {
                continue;
            }
            seen.push(place);
            let group = &mut self.groups[place];
            if group.hits.len() < self.hits_each {
                group.hits.push(hit.clone());
                is_taken = true;
                self.short -= usize::from(group.hits.len() == self.hits_each);
            }
        }
        is_taken
    }

    /// Whether no further hit could be taken.
    pub fn is_full(&self) -> bool {
        self.hits_each == 0 || (self.groups.len() >= self.limit && self.short == 0)
    }

    /// What to search for, unless the search has come to its end: the values as a filter's
    /// `In`, or the opposite of it.
    pub fn needs(&self) -> Needs<'_, V> {
        if self.is_full() {
            return Needs::Nothing;
        }
        let is_short = |group: &&Group<V, H>| group.hits.len() < self.hits_each;
        let values = |keep: bool| {
            let groups = self.groups.iter().filter(|group| is_short(group) == keep);
            groups.map(|group| &group.value).collect()
        };
        match self.groups.len() < self.limit {
            true => Needs::NotOf(values(false)),
            false => Needs::Of(values(true)),
        }
    }

    /// The groups, the one with the nearest hit first.
    pub fn finish(self) -> Vec<Group<V, H>> {
        self.groups
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use shoal_schemas::{Value, filter::compare::compare};

    use super::{Group, Groups, Needs, Shared};

    fn hits() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(0u8..6, 0..3), 0..40)
    }

    /// Every group there is, by looking at all hits for each value.
    fn all_groups(hits: &[Vec<u8>], limit: usize, hits_each: usize) -> Vec<Group<u8, usize>> {
        let mut values: Vec<u8> = Vec::new();
        for value in hits.iter().flatten() {
            if !values.contains(value) {
                values.push(*value);
            }
        }
        let groups = values.into_iter().take(limit).map(|value| {
            let of_value = hits
                .iter()
                .enumerate()
                .filter(|(_, of)| of.contains(&value));
            let hits = of_value.map(|(hit, _)| hit).take(hits_each).collect();
            Group { value, hits }
        });
        groups.collect()
    }

    proptest! {
        #[test]
        fn groups_equal_those_of_every_hit(hits in hits(), limit in 0usize..6, hits_each in 1usize..5) {
            let mut groups = Groups::new(limit, hits_each);
            for (hit, values) in hits.iter().enumerate() {
                let was_full = groups.is_full();
                let is_taken = groups.offer(&hit, values.iter().copied());
                prop_assert!(!(was_full && is_taken));
            }
            prop_assert_eq!(groups.finish(), all_groups(&hits, limit, hits_each));
        }

        #[test]
        fn what_is_needed_is_all_that_would_still_be_taken(
            hits in hits(),
            value in 0u8..6,
            limit in 0usize..6,
            hits_each in 1usize..5,
        ) {
            let mut groups = Groups::new(limit, hits_each);
            for (hit, values) in hits.iter().enumerate() {
                groups.offer(&hit, values.iter().copied());
            }
            let needed = match groups.needs() {
                Needs::Nothing => false,
                Needs::Of(short) => short.contains(&&value),
                Needs::NotOf(full) => !full.contains(&&value),
            };
            prop_assert_eq!(groups.is_full(), groups.needs() == Needs::Nothing);
            prop_assert_eq!(groups.offer(&hits.len(), [value]), needed);
        }
    }

    #[test]
    fn what_is_equal_to_a_filter_is_shared() {
        let numbers = [
            0.0,
            -0.0,
            0.5,
            1e300,
            9_007_199_254_740_992.0,
            9.223_372_036_854_776e18,
        ];
        let whole = [
            0,
            1,
            i64::MIN,
            i64::MAX,
            9_007_199_254_740_992,
            9_007_199_254_740_993,
        ];
        let mut values: Vec<Value> = numbers.into_iter().map(Value::Float).collect();
        values.extend(whole.map(Value::Integer));
        values.extend([
            Value::Timestamp(0),
            Value::Boolean(false),
            Value::String("0".to_owned()),
        ]);
        values.push(Value::Float(-9.223_372_036_854_776e18));
        for left in &values {
            for right in &values {
                let is_equal = compare(left, right).is_some_and(std::cmp::Ordering::is_eq);
                assert_eq!(
                    Shared::of(left) == Shared::of(right),
                    is_equal,
                    "{left:?} {right:?}"
                );
            }
            let back = Shared::of(left).first().map(Shared::to_value);
            let is_equal =
                back.is_some_and(|back| compare(&back, left).is_some_and(|order| order.is_eq()));
            assert!(is_equal, "{left:?}");
        }
        let list = Value::Strings(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(Shared::of(&list).len(), 2);
    }

    #[test]
    fn groups_of_nothing_are_full_at_once() {
        let mut groups = Groups::new(3, 0);
        assert!(groups.is_full());
        assert!(!groups.offer(&1, ["a"]));
        assert!(groups.finish().is_empty());
    }
}
