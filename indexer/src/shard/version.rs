//! What a shard calls the content it has: a name that changes with it.
//!
//! Query nodes keep answers and ask whether they still hold. The name is made of what the content
//! is a function of, the offsets applied of each source, and of the content's digest, so that two
//! copies that have applied the same have the same name, and a topic that was made anew has
//! another. What expires is not in it: the moment of that goes with an answer.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::shard::{Progress, Shared};

/// What the names are made for; another way of making them needs another text.
const CONTEXT: &str = "shoal 2026 shard version v1";
/// Bytes of a name.
const LENGTH: usize = 16;

/// The name that was made last, and of what. Every search tells the name, and it changes only when
/// records are applied.
#[derive(Default)]
pub(super) struct Named(Mutex<Option<(Arc<Progress>, Bytes)>>);

impl Named {
    /// The name of that progress, made by `make` if it is not the one made last.
    fn of(&self, progress: Arc<Progress>, make: impl FnOnce(&Progress) -> Bytes) -> Bytes {
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, name)) = &*named
            && Arc::ptr_eq(of, &progress)
        {
            return name.clone();
        }
        let name = make(&progress);
        *named = Some((progress, name.clone()));
        name
    }
}

impl Shared {
    /// The name of what a search that begins now sees, or of something older that ended just now.
    ///
    /// So take it before the search: an answer then never is older than its name.
    pub fn version(&self) -> Bytes {
        let progress = Arc::clone(&self.progress.borrow());
        self.named.of(progress, |progress| self.name_of(progress))
    }

    fn name_of(&self, progress: &Progress) -> Bytes {
        let mut sources: Vec<_> = self.sources.iter().zip(&progress.next).collect();
        // Copies may have met their sources in another order.
        sources.sort_unstable_by_key(|(one, _)| &one.source);
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        let mut add = |bytes: &[u8]| {
            hasher.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(bytes);
        };
        add(&self.spec.incarnation.0.to_le_bytes());
        add(&progress.digest.to_bytes());
        for (one, next) in sources {
            add(one.source.cluster.0.as_bytes());
            add(one.source.topic.as_bytes());
            add(&one.source.partition.0.to_le_bytes());
            add(&next.0.to_le_bytes());
        }
        let mut name = [0; LENGTH];
        hasher.finalize_xof().fill(&mut name);
        Bytes::copy_from_slice(&name)
    }

    /// Whether an answer that was given at a version still is the one to give.
    pub fn still_answers(&self, version: &[u8], expires_at_ms: i64) -> bool {
        let is_over = expires_at_ms != 0 && expires_at_ms <= self.now_ms();
        !is_over && self.version() == version
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::Named;
    use crate::shard::Progress;

    #[test]
    fn a_name_is_made_once_until_something_is_applied() {
        let named = Named::default();
        let (one, other) = (Arc::new(Progress::default()), Arc::new(Progress::default()));
        let make = |name: &'static [u8]| move |_: &Progress| Bytes::from_static(name);
        assert_eq!(named.of(one.clone(), make(b"a")), "a");
        assert_eq!(named.of(one, make(b"b")), "a");
        assert_eq!(named.of(other, make(b"c")), "c");
    }
}
