//! Whether two collections are the same but for their place in a line of generations: pure.

use shoal_schemas::{Collection, IndexParameters};

/// Whether a new generation would be what the old one is.
pub(super) fn is_like(old: &Collection, new: &Collection) -> bool {
    let bare = |one: &Collection| Collection {
        name: old.name.clone(),
        reads: None,
        fed_by: None,
        index: IndexParameters {
            quantization: Some(one.quantization()),
            ..one.index
        },
        ..one.clone()
    };
    bare(old) == bare(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Collection, Metric, Quantization};

    use super::is_like;

    #[test]
    fn a_generation_is_like_another_whatever_its_name_and_topic() {
        let old = Collection::new(
            "docs".parse().unwrap(),
            3.try_into().unwrap(),
            Metric::L2,
            1,
        );
        let mut new = old.clone();
        new.name = "docs-g2".parse().unwrap();
        new.reads = Some(old.name.clone());
        assert!(is_like(&old, &new) && is_like(&new, &old));
        new.index.quantization = Some(Quantization::I8);
        assert!(is_like(&old, &new), "it is what suits");
        new.index.m += 1;
        assert!(!is_like(&old, &new));
    }
}
