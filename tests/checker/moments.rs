//! Sets of moments of one shard: how many records of its partition had been applied.

/// Moments, as ranges that include both ends, in order, apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moments(Vec<(u64, u64)>);

impl Moments {
    /// Every moment from one to another.
    pub(crate) fn between(first: u64, last: u64) -> Self {
        match first <= last {
            true => Self(vec![(first, last)]),
            false => Self::default(),
        }
    }

    /// Adds later ones.
    pub(crate) fn push(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        match self.0.last_mut() {
            Some(end) if end.1 + 1 >= first => end.1 = end.1.max(last),
            _ => self.0.push((first, last)),
        }
    }

    /// The moments that are in both.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let (mut both, mut a, mut b) = (Self::default(), 0, 0);
        while let (Some(left), Some(right)) = (self.0.get(a), other.0.get(b)) {
            both.push(left.0.max(right.0), left.1.min(right.1));
            match left.1 < right.1 {
                true => a += 1,
                false => b += 1,
            }
        }
        both
    }

    /// Those from a moment on.
    pub(crate) fn from(&self, first: u64) -> Self {
        self.and(&Self::between(first, u64::MAX))
    }

    /// Those up to a moment.
    pub(crate) fn to(&self, last: u64) -> Self {
        self.and(&Self::between(0, last))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn first(&self) -> Option<u64> {
        self.0.first().map(|range| range.0)
    }

    pub(crate) fn last(&self) -> Option<u64> {
        self.0.last().map(|range| range.1)
    }
}
