//! What every call goes through first: its turn, and what the caller insists on.

use std::time::Duration;

use shoal_schemas::v1;

use crate::{
    admission::{Admitted, Turned},
    call::Call,
    coordinator::{Coordinator, QueryError, check},
    scatter::Terms,
    shard_map::Shards,
    tokens::by_shard,
};

/// Largest lag that a caller may say it accepts, milliseconds: a day.
const MAX_STALENESS_MS: u64 = 86_400_000;

impl Coordinator {
    /// Works on a call once it is its turn.
    pub(super) async fn admitted<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, QueryError> {
        let patience = call.deadline.remaining();
        let entered = self.admission.enter(patience, || self.meters.queued());
        let _admitted: Admitted<'_> = entered.await.map_err(|turned| match turned {
            Turned::Away {
                waiting,
                retry_after,
            } => QueryError::Busy {
                waiting,
                retry_after,
            },
            Turned::Late => QueryError::NoTime,
        })?;
        work.await
    }

    /// Reads what the caller insists on; waits until tokens can be told apart, if there are any.
    pub(super) async fn terms(
        &self,
        shards: &Shards,
        read: Option<v1::ReadOptions>,
        call: &Call,
    ) -> Result<Terms, QueryError> {
        let read = read.unwrap_or_default();
        if let Some(found) = read.max_staleness_ms {
            check::in_range("max_staleness_ms", found, 1, MAX_STALENESS_MS)?;
        }
        let mut terms = Terms {
            max_staleness: read.max_staleness_ms.map(Duration::from_millis),
            require_all: read.require_all,
            ..Terms::default()
        };
        if read.at_least.is_empty() {
            return Ok(terms);
        }
        // Known a moment after the start: worth a wait, but no longer than the caller has.
        let patience = call.deadline.for_shards().remaining();
        let home = tokio::time::timeout(patience, self.home.wait()).await;
        let home = home.map_err(|_| QueryError::HomeUnknown)?;
        terms.tokens = by_shard(&shards.collection, home, read.at_least)?;
        Ok(terms)
    }
}
