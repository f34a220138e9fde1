//! Queries as they come over the wire, checked against the collection.

use shoal_schemas::{Collection, Vector, v1};
use tonic::Code;

use crate::{serve::Refusal, shard::search::Ask};

/// Most points one query may ask for.
const MAX_K: u32 = 10_000;

/// Checks all queries of a call.
///
/// # Errors
/// [`Refusal`] with `INVALID_ARGUMENT`, naming the query.
pub(super) fn check(queries: &[v1::Query], collection: &Collection) -> Result<Vec<Ask>, Refusal> {
    let refuse = |number: usize, text: String| Refusal {
        code: Code::InvalidArgument,
        message: format!("query {number}: {text}"),
    };
    let checked = queries.iter().enumerate().map(|(number, query)| {
        let k = match query.k {
            1..=MAX_K => usize::try_from(query.k).unwrap_or(usize::MAX),
            k => {
                return Err(refuse(
                    number,
                    format!("k is {k}, allowed are 1 to {MAX_K}"),
                ));
            }
        };
        Vector::new(&query.vector, collection.dim, collection.metric)
            .map_err(|error| refuse(number, error.to_string()))?;
        let beam = query.ef.min(MAX_K);
        Ok(Ask {
            vector: query.vector.clone(),
            k,
            beam: (beam > 0).then(|| usize::try_from(beam).unwrap_or(usize::MAX)),
            with_vector: query.with_vector,
            with_payload: query.with_payload,
            exact: query.exact,
        })
    });
    checked.collect()
}
