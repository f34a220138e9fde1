//! Which fields of a payload an answer carries.

use std::collections::{BTreeSet, HashMap};

use crate::v1;

/// The fields that are wanted: those included, or all; without those excluded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    include: BTreeSet<String>,
    exclude: BTreeSet<String>,
}

impl Selection {
    /// Of the fields named; no `include` means all.
    pub fn new(include: &[String], exclude: &[String]) -> Self {
        Self {
            include: include.iter().cloned().collect(),
            exclude: exclude.iter().cloned().collect(),
        }
    }

    /// Whether the whole payload is wanted.
    pub fn is_all(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a field is wanted.
    pub fn wants(&self, field: &str) -> bool {
        (self.include.is_empty() || self.include.contains(field)) && !self.exclude.contains(field)
    }

    /// Takes out of a message what is not wanted.
    pub fn cut(&self, payload: &mut HashMap<String, v1::Value>) {
        if !self.is_all() {
            payload.retain(|field, _| self.wants(field));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Selection;

    #[test]
    fn what_is_excluded_stays_away_even_if_it_is_included() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let wanted = |include: &[&str], exclude: &[&str]| {
            let selection = Selection::new(&names(include), &names(exclude));
            ["a", "b", "c"].map(|field| selection.wants(field))
        };
        assert_eq!(wanted(&[], &[]), [true, true, true]);
        assert_eq!(wanted(&["a", "b"], &[]), [true, true, false]);
        assert_eq!(wanted(&[], &["a"]), [false, true, true]);
        assert_eq!(wanted(&["a", "b"], &["a"]), [false, true, false]);
    }
}
