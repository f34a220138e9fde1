//! What came back of the shards, and whether that is an answer: pure.
//!
//! An answer may lack shards and says which. It is none if a shard that has to show a token's
//! write is missing, if the caller insists on all of them, or if none answered at all.

use std::{fmt, time::Duration};

use shoal_runtime::ErrorKind;
use shoal_schemas::{Partition, v1};

use crate::{client::Outcome, plan::Orphan, scatter::Terms};

/// When busy shards may take a call that is made again: their queues hold less than that.
pub(crate) const BUSY_PATIENCE: Duration = Duration::from_millis(100);

/// A shard without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Miss {
    pub(crate) shard: Partition,
    /// The node asked; empty if nobody owns the shard.
    pub(crate) node: String,
    pub(crate) outcome: Outcome,
    pub(crate) why: String,
}

impl Miss {
    /// There was no time left to ask again.
    pub(crate) fn without_time(shard: Partition) -> Self {
        Self {
            shard,
            node: String::new(),
            outcome: Outcome::TimedOut,
            why: "no time was left to ask it again".to_owned(),
        }
    }
}

impl From<Orphan> for Miss {
    fn from(orphan: Orphan) -> Self {
        Self {
            shard: orphan.shard,
            node: orphan.node,
            outcome: Outcome::Unreachable,
            why: orphan.why,
        }
    }
}

/// Everything that came back.
pub(crate) struct Gathered<B> {
    pub(crate) answers: Vec<(v1::ShardCoverage, B)>,
    pub(crate) misses: Vec<Miss>,
}

impl<B> Gathered<B> {
    /// The same with what is made of each answer.
    pub(crate) fn map<C>(self, mut make: impl FnMut(B) -> C) -> Gathered<C> {
        let answers = self.answers.into_iter();
        Gathered {
            answers: answers.map(|(shard, body)| (shard, make(body))).collect(),
            misses: self.misses,
        }
    }
}

impl<B> Default for Gathered<B> {
    fn default() -> Self {
        Self {
            answers: Vec::new(),
            misses: Vec::new(),
        }
    }
}

/// A shard that is missing from an answer, as an error tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// The shard.
    pub shard: Partition,
    /// Why.
    pub why: String,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}: {}", self.shard, self.why)
    }
}

/// Why what came back is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoverageError {
    /// A shard says that the request is wrong.
    #[error("{0}")]
    Refused(Unanswered),
    /// A shard does not know how to do what is asked.
    #[error("{0}")]
    Unsupported(Unanswered),
    /// A token's write did not show in time.
    #[error(
        "the write of a token was not applied before the deadline: {}; allow more time, or search \
         without the token", listed(.0)
    )]
    TokenTooLate(Vec<Unanswered>),
    /// Shards that were needed have more to do than they take, and nothing else is missing.
    #[error(
        "{} of {asked} shards have more to do than they take; try again in {} ms: {}",
        .shards.len(), BUSY_PATIENCE.as_millis(), listed(.shards)
    )]
    Busy {
        /// How many were asked.
        asked: usize,
        /// Those that are busy.
        shards: Vec<Unanswered>,
    },
    /// Shards that were needed did not answer.
    #[error("{} of {asked} shards did not answer: {}", .shards.len(), listed(.shards))]
    Missing {
        /// How many were asked.
        asked: usize,
        /// Those that are missing.
        shards: Vec<Unanswered>,
    },
}

impl CoverageError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(_) | Self::Unsupported(_) => ErrorKind::Caller,
            Self::TokenTooLate(_) | Self::Busy { .. } | Self::Missing { .. } => ErrorKind::Retry,
        }
    }
}

fn listed(shards: &[Unanswered]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = shards.iter().take(SHOWN).map(ToString::to_string).collect();
    match shards.len().saturating_sub(SHOWN) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

/// Says whether that is an answer, and on which shards it rests.
pub(crate) fn judge<B>(
    gathered: Gathered<B>,
    terms: &Terms,
) -> Result<(Vec<B>, v1::Coverage), CoverageError> {
    let Gathered {
        mut answers,
        mut misses,
    } = gathered;
    misses.sort_by_key(|miss| miss.shard);
    let asked = answers.len() + misses.len();
    check(asked, &misses, terms)?;
    if answers.is_empty() && asked > 0 {
        return Err(missing(asked, &misses));
    }
    answers.sort_unstable_by_key(|(coverage, _)| coverage.shard);
    let mut coverage = v1::Coverage {
        shards_asked: number(asked),
        shards_answered: number(answers.len()),
        shards: Vec::with_capacity(asked),
        ..v1::Coverage::default()
    };
    let mut bodies = Vec::with_capacity(answers.len());
    for (shard, body) in answers {
        coverage.shards.push(v1::ShardCoverage {
            answered: true,
            ..shard
        });
        bodies.push(body);
    }
    if !misses.is_empty() {
        coverage
            .shards
            .extend(misses.into_iter().map(|miss| v1::ShardCoverage {
                shard: miss.shard.0,
                answered: false,
                error: miss.why,
                node: miss.node,
                ..v1::ShardCoverage::default()
            }));
        coverage.shards.sort_by_key(|shard| shard.shard);
    }
    Ok((bodies, coverage))
}

/// Says whether a caller accepts that these shards are missing of so many.
///
/// # Errors
/// [`CoverageError`].
pub(crate) fn check(asked: usize, misses: &[Miss], terms: &Terms) -> Result<(), CoverageError> {
    let told = |miss: &Miss| Unanswered {
        shard: miss.shard,
        why: miss.why.clone(),
    };
    if let Some(refused) = misses.iter().find(|miss| miss.outcome == Outcome::Refused) {
        return Err(CoverageError::Refused(told(refused)));
    }
    // An answer without it would be one to another question.
    let unsupported = |miss: &&Miss| miss.outcome == Outcome::Unsupported;
    if let Some(refused) = misses.iter().find(unsupported) {
        return Err(CoverageError::Unsupported(told(refused)));
    }
    // A token that cannot be honoured fails the call: an answer without its write would look
    // like one with it.
    let promised: Vec<&Miss> = (misses.iter())
        .filter(|miss| terms.tokens.contains_key(&miss.shard))
        .collect();
    if promised
        .iter()
        .any(|miss| miss.outcome == Outcome::TimedOut)
    {
        return Err(CoverageError::TokenTooLate(
            promised.into_iter().map(told).collect(),
        ));
    }
    if !promised.is_empty() || terms.require_all && !misses.is_empty() {
        return Err(missing(asked, misses));
    }
    Ok(())
}

/// Why there is no answer where these shards are missing of so many.
fn missing(asked: usize, misses: &[Miss]) -> CoverageError {
    let shards = misses.iter().map(|miss| Unanswered {
        shard: miss.shard,
        why: miss.why.clone(),
    });
    let shards = shards.collect();
    match misses.iter().all(|miss| miss.outcome == Outcome::Busy) {
        true => CoverageError::Busy { asked, shards },
        false => CoverageError::Missing { asked, shards },
    }
}

/// Takes back that a shard answered, because it did not answer all that was asked of it.
pub(crate) fn withdraw(coverage: &mut v1::Coverage, miss: &Miss) {
    let shard = coverage
        .shards
        .iter_mut()
        .find(|one| one.shard == miss.shard.0);
    if let Some(shard) = shard
        && shard.answered
    {
        shard.answered = false;
        shard.error.clone_from(&miss.why);
        coverage.shards_answered = coverage.shards_answered.saturating_sub(1);
    }
}

fn number(shards: usize) -> u32 {
    u32::try_from(shards).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Partition, v1};

    use super::{CoverageError, Gathered, Miss, check, judge};
    use crate::{client::Outcome, scatter::Terms};

    fn gathered(answered: &[u32], missed: &[(u32, Outcome)]) -> Gathered<u32> {
        let coverage = |shard: u32| v1::ShardCoverage {
            shard,
            ..v1::ShardCoverage::default()
        };
        let miss = |(shard, outcome): &(u32, Outcome)| Miss {
            shard: Partition(*shard),
            node: "a".into(),
            outcome: *outcome,
            why: "planted".into(),
        };
        Gathered {
            answers: answered
                .iter()
                .map(|shard| (coverage(*shard), *shard))
                .collect(),
            misses: missed.iter().map(miss).collect(),
        }
    }

    fn token_of(shard: u32) -> Terms {
        Terms {
            tokens: [(Partition(shard), vec![v1::Token::default()])].into(),
            ..Terms::default()
        }
    }

    fn all() -> Terms {
        Terms {
            require_all: true,
            ..Terms::default()
        }
    }

    #[test]
    fn a_partial_answer_names_what_it_lacks() {
        let gathered = gathered(&[2, 0], &[(1, Outcome::TimedOut)]);
        let (bodies, coverage) = judge(gathered, &Terms::default()).unwrap();
        assert_eq!(bodies, [0, 2]);
        assert_eq!((coverage.shards_asked, coverage.shards_answered), (3, 2));
        let shards: Vec<_> = coverage
            .shards
            .iter()
            .map(|s| (s.shard, s.answered, s.error.as_str()))
            .collect();
        assert_eq!(
            shards,
            [(0, true, ""), (1, false, "planted"), (2, true, "")]
        );
    }

    #[test]
    fn a_caller_who_wants_all_gets_all_or_an_error_that_names_the_missing() {
        let refused = judge(gathered(&[0], &[(3, Outcome::Failed)]), &all());
        let text = refused.unwrap_err().to_string();
        assert_eq!(text, "1 of 2 shards did not answer: shard 3: planted");
        assert!(judge(gathered(&[0, 1], &[]), &all()).is_ok());
    }

    #[test]
    fn no_answer_at_all_is_an_error_even_if_partial_ones_are_welcome() {
        let refused = judge(
            gathered(&[], &[(0, Outcome::Unreachable)]),
            &Terms::default(),
        );
        assert!(matches!(
            refused.unwrap_err(),
            CoverageError::Missing { asked: 1, .. }
        ));
    }

    #[test]
    fn shards_that_are_all_busy_are_told_from_ones_that_are_away() {
        let busy = |missed: &[(u32, Outcome)], terms: &Terms| {
            judge(gathered(&[0], missed), terms).unwrap_err()
        };
        let (one, two) = ((1, Outcome::Busy), (2, Outcome::Busy));
        let told = busy(&[one, two], &all());
        assert!(matches!(told, CoverageError::Busy { asked: 3, .. }));
        assert!(told.to_string().contains("2 of 3 shards"), "{told}");
        let told = busy(&[one, (2, Outcome::Unreachable)], &all());
        assert!(matches!(told, CoverageError::Missing { .. }));
        let told = busy(&[one], &token_of(1));
        assert!(matches!(told, CoverageError::Busy { .. }));
        let nothing = judge(gathered(&[], &[one]), &Terms::default());
        assert!(matches!(nothing.unwrap_err(), CoverageError::Busy { .. }));
        assert!(judge(gathered(&[0], &[one]), &Terms::default()).is_ok());
    }

    #[test]
    fn a_shard_that_owes_a_token_cannot_be_missing() {
        let late = judge(gathered(&[0], &[(1, Outcome::TimedOut)]), &token_of(1));
        assert!(matches!(late.unwrap_err(), CoverageError::TokenTooLate(_)));
        let gone = judge(gathered(&[0], &[(1, Outcome::Unreachable)]), &token_of(1));
        assert!(matches!(gone.unwrap_err(), CoverageError::Missing { .. }));
        assert!(judge(gathered(&[0], &[(1, Outcome::TimedOut)]), &token_of(0),).is_ok());
    }

    #[test]
    fn a_shard_that_is_not_asked_again_for_want_of_time_is_missing_like_any_other() {
        let misses = [Miss::without_time(Partition(1))];
        assert!(check(2, &misses, &Terms::default()).is_ok());
        let late = check(2, &misses, &token_of(1)).unwrap_err();
        assert!(matches!(late, CoverageError::TokenTooLate(_)));
        let all = Terms {
            require_all: true,
            ..Terms::default()
        };
        let missing = check(2, &misses, &all).unwrap_err();
        assert!(matches!(missing, CoverageError::Missing { asked: 2, .. }));
    }

    #[test]
    fn a_request_that_a_shard_refuses_fails_as_the_callers_fault() {
        let refused = judge(gathered(&[0], &[(1, Outcome::Refused)]), &Terms::default());
        assert!(matches!(refused.unwrap_err(), CoverageError::Refused(_)));
    }
}
