//! An answer that carries a token shows that write, or a newer one of its key; a delete likewise.

use super::{Anomaly, Case, Promise};

/// An answer from before a token's write, or without its shard.
pub(crate) fn check(case: &Case<'_>) -> Vec<Anomaly> {
    let mut found = Vec::new();
    for read in &case.reads {
        for token in &read.demands.tokens {
            let covered = read.answer.shards.iter();
            let covered = covered
                .filter(|shard| shard.answered)
                .find(|shard| shard.shard == token.partition);
            let told = match covered {
                None => Some("its shard did not answer".to_owned()),
                Some(covered) if covered.next_offset <= token.offset => Some(format!(
                    "node `{}` had applied {} records",
                    covered.node, covered.next_offset
                )),
                Some(covered) => {
                    let mut parts = read.of_shard(token.partition);
                    let stale = parts.find(|part| part.moments.from(token.offset + 1).is_empty());
                    stale.map(|part| {
                        format!(
                            "node `{}` showed {}, which was so after {:?} records at the latest",
                            covered.node,
                            part.told,
                            part.moments.last()
                        )
                    })
                }
            };
            if let Some(told) = told {
                let writer = case.writer(*token);
                let wrong = read.operation.number;
                let operations: Vec<u64> = [wrong].into_iter().chain(writer).collect();
                let told = format!(
                    "token of offset {} of shard {}: {told}",
                    token.offset, token.partition
                );
                found.push(Anomaly::new(Promise::Tokens, &operations, told));
            }
        }
    }
    found
}
