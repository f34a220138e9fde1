//! A shard is at most as far behind as it says, and as the caller accepts.
//!
//! A lag of L says that L ago the shard held everything the broker had. It was told after the call was made, so what was
//! acknowledged L before the call has to show.

use super::{Anomaly, Case, Promise};

/// Times are cut to whole microseconds on both sides, and a lag is a floating number of seconds.
const SLACK_US: u64 = 1_000;

/// An answer that lacks what its lag says it has, or whose lag is over the caller's bound.
pub(crate) fn check(case: &Case<'_>) -> Vec<Anomaly> {
    let mut found = Vec::new();
    for read in &case.reads {
        let (operation, demands, answer) = (read.operation, read.demands, read.answer);
        for covered in answer.shards.iter().filter(|shard| shard.answered) {
            let mut wrong = |told: String| {
                let told = format!(
                    "shard {} of node `{}`, {} us behind: {told}",
                    covered.shard, covered.node, covered.lag_us
                );
                found.push(Anomaly::new(Promise::Freshness, &[operation.number], told));
            };
            if demands
                .max_staleness_us
                .is_some_and(|most| covered.lag_us > most)
            {
                wrong("further than the caller accepts".into());
            }
            let behind = covered.lag_us.saturating_add(SLACK_US);
            let Some(held_at) = operation.invoked_us.checked_sub(behind) else {
                continue;
            };
            let held = case.log.known_by(covered.shard, held_at);
            if covered.next_offset < held {
                wrong(format!(
                    "it had applied {} records, {held} were acknowledged before",
                    covered.next_offset
                ));
            }
            for part in read.of_shard(covered.shard) {
                if part.moments.from(held).is_empty() {
                    wrong(format!(
                        "it showed {}, {held} records were acknowledged before",
                        part.told
                    ));
                }
            }
        }
    }
    found
}
