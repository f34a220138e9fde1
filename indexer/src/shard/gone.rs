//! When a shard's own state does not lead on to its topic, and what is done then.
//!
//! Compaction raises no error: a shard that was away for longer than tombstones are kept has missed
//! deletes and cannot know which. So its age decides. Nor does a topic that was made anew under its name, once it is as
//! long as the old one was: its id decides. The shard's folder is set aside, never removed, and
//! the shard is rebuilt from the topic, which always is a complete copy.

use std::{fs, time::Duration};

use shoal_schemas::{Offset, TopicId};
use shoal_topic::Watermarks;

use crate::shard::{Spec, recover::OpenError, topics::why_another};

/// Part of the tombstones' time that is kept as a margin: clocks differ, compaction is not exact.
const MARGIN_SHARE: u64 = 10;

/// What is known of a shard and of its topic when it goes on.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// The topic the shard has read, where that is known.
    pub(super) known: Option<TopicId>,
    /// The topic that is there, where its broker tells.
    pub(super) found: Option<TopicId>,
    /// First offset the shard has not applied.
    pub(super) next: Offset,
    /// Wall time at which it last held everything the broker had, or a new one began to read; 0 if unknown.
    pub(super) heard_ms: u64,
    /// Wall time now.
    pub(super) now_ms: u64,
    /// How long the topic keeps tombstones.
    pub(super) delete_retention_ms: u64,
    /// What the broker says of the partition.
    pub(super) ends: Watermarks,
}

/// Why the shard cannot go on from where it is, if it cannot.
pub(super) fn why(standing: &Standing) -> Option<String> {
    let Standing { next, ends, .. } = *standing;
    if next == Offset(0) {
        return None;
    }
    if let Some(why) = why_another(standing.known.as_ref(), standing.found.as_ref()) {
        return Some(why);
    }
    if next > ends.high {
        return Some(format!(
            "it has applied up to offset {next}, the topic ends at {}: the topic was made anew or cut",
            ends.high
        ));
    }
    if next < ends.low {
        return Some(format!(
            "it has applied up to offset {next}, the topic begins at {}: records are gone",
            ends.low
        ));
    }
    let age = Age {
        heard_ms: standing.heard_ms,
        now_ms: standing.now_ms,
        delete_retention_ms: standing.delete_retention_ms,
    };
    (next < ends.high).then(|| age.why()).flatten()
}

/// How long ago a shard last held everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    /// See [`Standing::heard_ms`].
    pub(super) heard_ms: u64,
    /// Wall time now.
    pub(super) now_ms: u64,
    /// See [`Standing::delete_retention_ms`].
    pub(super) delete_retention_ms: u64,
}

impl Age {
    /// Why a shard that has not held everything for so long cannot take what comes, if it cannot.
    pub(super) fn why(self) -> Option<String> {
        let away_ms = self.away_ms();
        (self.heard_ms > 0 && self.is_too_long(away_ms)).then(|| {
            format!(
                "it was away for {:?}, tombstones are kept for {:?}: deletes may be missed",
                Duration::from_millis(away_ms),
                Duration::from_millis(self.delete_retention_ms)
            )
        })
    }

    /// That time, milliseconds.
    pub(super) fn away_ms(self) -> u64 {
        self.now_ms.saturating_sub(self.heard_ms)
    }

    /// Whether tombstones may have come and gone in that time.
    pub(super) fn is_too_long(self, millis: u64) -> bool {
        millis > self.delete_retention_ms - self.delete_retention_ms / MARGIN_SHARE
    }
}

/// Renames the shard's folder, so that the shard begins anew and nothing is lost.
pub(super) fn set_aside(spec: &Spec) -> Result<(), OpenError> {
    let name = spec
        .folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let free = (0u32..).map(|number| spec.folder.with_file_name(format!("{name}.aside-{number}")));
    let to = free.into_iter().find(|path| !path.exists());
    let to = to.unwrap_or_else(|| spec.folder.with_extension("aside"));
    fs::rename(&spec.folder, &to).map_err(|source| OpenError::File { path: to, source })
}

#[cfg(test)]
mod tests {
    use shoal_schemas::{Offset, TopicId};
    use shoal_topic::Watermarks;

    use super::{Standing, why};

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    fn standing(next: u64, low: u64, high: u64, away_ms: u64) -> Standing {
        Standing {
            known: Some("a".into()),
            found: Some("a".into()),
            next: Offset(next),
            heard_ms: 100 * DAY_MS,
            now_ms: 100 * DAY_MS + away_ms,
            delete_retention_ms: 7 * DAY_MS,
            ends: Watermarks {
                low: Offset(low),
                high: Offset(high),
            },
        }
    }

    #[test]
    fn a_shard_within_its_topic_and_in_time_goes_on() {
        assert_eq!(why(&standing(5, 0, 9, DAY_MS)), None);
        assert_eq!(why(&standing(5, 5, 5, DAY_MS)), None);
        assert_eq!(
            why(&standing(0, 7, 9, 30 * DAY_MS)),
            None,
            "an empty shard begins anywhere"
        );
    }

    #[test]
    fn a_topic_made_anew_or_cut_is_noticed() {
        assert!(why(&standing(10, 0, 9, 0)).is_some_and(|why| why.contains("ends at 9")));
        assert!(why(&standing(3, 4, 9, 0)).is_some_and(|why| why.contains("begins at 4")));
    }

    #[test]
    fn a_topic_of_another_id_is_another_one_however_long_it_is() {
        let ids = |next, known: Option<&str>, found: Option<&str>| Standing {
            known: known.map(TopicId::from),
            found: found.map(TopicId::from),
            ..standing(next, 0, 9, 0)
        };
        let noticed = why(&ids(5, Some("a"), Some("b"))).expect("another topic");
        assert!(
            noticed.contains("id a") && noticed.contains("id b"),
            "{noticed}"
        );
        assert_eq!(
            why(&ids(0, Some("a"), Some("b"))),
            None,
            "nothing of it was read"
        );
        for (known, found) in [(None, Some("b")), (Some("a"), None), (None, None)] {
            assert_eq!(
                why(&ids(5, known, found)),
                None,
                "a broker without ids, or an older folder"
            );
        }
    }

    #[test]
    fn a_shard_away_for_longer_than_tombstones_are_kept_does_not_go_on_unless_nothing_came() {
        let away = 6 * DAY_MS + DAY_MS / 2;
        assert!(why(&standing(5, 0, 9, away)).is_some_and(|why| why.contains("deletes")));
        assert_eq!(why(&standing(9, 0, 9, away)), None);
    }
}
