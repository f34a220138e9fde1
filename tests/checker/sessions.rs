//! A process that carries what it has seen never goes back.
//!
//! What it has seen is what a client can make a token of: its own acknowledged writes, the places of points it got, and
//! the offsets that coverage names. That the tokens were sent is checked along with it.

use std::collections::BTreeMap;

use super::{
    Anomaly, Case, Promise,
    history::{Answer, Operation, Outcome},
};

/// By shard: the first moment that has all that was seen, and the operation that saw it.
type Floors = BTreeMap<u32, (u64, u64)>;

/// An answer from before something the process saw earlier.
pub(crate) fn check(case: &Case<'_>) -> Vec<Anomaly> {
    let mut sessions: BTreeMap<u32, Floors> = BTreeMap::new();
    let mut found = Vec::new();
    let mut reads = case.reads.iter().peekable();
    for operation in case.history.operations.iter().filter(|one| one.is_session) {
        let floors = sessions.entry(operation.process).or_default();
        match &operation.outcome {
            Outcome::Written { place, .. } => {
                learn(floors, place.partition, place.offset + 1, operation);
            }
            Outcome::Answered(answer) => {
                // Reads are in the order of operations, too.
                while reads
                    .next_if(|read| read.operation.number < operation.number)
                    .is_some()
                {}
                let parts = reads.peek().into_iter().flat_map(|read| &read.parts);
                for part in parts {
                    let Some((floor, earlier)) = floors.get(&part.shard) else {
                        continue;
                    };
                    if !part.moments.is_empty() && part.moments.from(*floor).is_empty() {
                        found.push(Anomaly::new(
                            Promise::Sessions,
                            &[operation.number, *earlier],
                            format!(
                                "shard {} showed {} to process {}, which had seen {floor} records",
                                part.shard, part.told, operation.process
                            ),
                        ));
                    }
                }
                learn_all(floors, operation, answer);
            }
            _ => {}
        }
    }
    found
}

fn learn_all(floors: &mut Floors, operation: &Operation, answer: &Answer) {
    for covered in answer.shards.iter().filter(|shard| shard.answered) {
        learn(floors, covered.shard, covered.next_offset, operation);
    }
    for place in answer.seen.iter().filter_map(|seen| seen.place) {
        learn(floors, place.partition, place.offset + 1, operation);
    }
}

fn learn(floors: &mut Floors, shard: u32, moment: u64, operation: &Operation) {
    let floor = floors.entry(shard).or_default();
    if moment > floor.0 {
        *floor = (moment, operation.number);
    }
}
