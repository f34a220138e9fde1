//! The calls that an edge node passes on, and where in them stands what it has to know.

use futures::future::{BoxFuture, FutureExt as _};
use prost::Message;
use shoal_schemas::v1;

use crate::{
    client::{
        ShardCall,
        regions::{Region, RegionError},
    },
    metrics::Verb,
};

/// A call that is passed on.
pub(crate) trait Forwarded: Message + Default + Clone + 'static {
    /// What comes back.
    type Answer: Message + Default + Clone + 'static;

    /// Its name.
    const VERB: Verb;

    /// The collection it is about.
    fn collection(&self) -> &str;

    /// Query vectors in it.
    fn queries(&self) -> usize;

    /// Whether its answer may be kept.
    fn may_be_kept(&self) -> bool;

    /// Takes out what the caller insists on, so that the rest is the question alone.
    fn take_read(&mut self) -> Option<v1::ReadOptions>;

    /// Puts it back.
    fn put_read(&mut self, read: Option<v1::ReadOptions>);

    /// Puts the call to a region.
    fn send(self, to: &Region, call: ShardCall)
    -> BoxFuture<'_, Result<Self::Answer, RegionError>>;

    /// What an answer rests on.
    fn coverage(answer: &Self::Answer) -> Option<&v1::Coverage>;

    /// The same, to say more of it; `None` where an answer does not tell.
    fn coverage_mut(answer: &mut Self::Answer) -> Option<&mut v1::Coverage>;
}

/// What all but one of the calls have in common.
macro_rules! forwarded {
    ($request:ident, $answer:ident, $verb:ident, $method:ident, $queries:expr, $keeps:expr) => {
        impl Forwarded for v1::$request {
            type Answer = v1::$answer;

            const VERB: Verb = Verb::$verb;

            fn collection(&self) -> &str {
                &self.collection
            }

            fn queries(&self) -> usize {
                let count: fn(&Self) -> usize = $queries;
                count(self)
            }

            fn may_be_kept(&self) -> bool {
                let keeps: fn(&Self) -> bool = $keeps;
                keeps(self)
            }

            fn take_read(&mut self) -> Option<v1::ReadOptions> {
                self.read.take()
            }

            fn put_read(&mut self, read: Option<v1::ReadOptions>) {
                self.read = read;
            }

            fn send(
                self,
                to: &Region,
                call: ShardCall,
            ) -> BoxFuture<'_, Result<Self::Answer, RegionError>> {
                let sent = to.search(self, call, |mut client, request| async move {
                    client.$method(request).await
                });
                sent.boxed()
            }

            fn coverage(answer: &Self::Answer) -> Option<&v1::Coverage> {
                answer.coverage.as_ref()
            }

            fn coverage_mut(answer: &mut Self::Answer) -> Option<&mut v1::Coverage> {
                Some(answer.coverage.get_or_insert_default())
            }
        }
    };
}

// An explanation is of what was done just now, so it is not kept.
forwarded!(
    SearchRequest,
    SearchResponse,
    Search,
    search,
    |_| 1,
    |one| { !one.explain }
);
forwarded!(
    SearchBatchRequest,
    SearchBatchResponse,
    SearchBatch,
    search_batch,
    |batch| batch.queries.len(),
    |batch| !batch.queries.iter().any(|query| query.explain)
);
forwarded!(
    RecommendRequest,
    SearchResponse,
    Recommend,
    recommend,
    |_| 1,
    |one| !one.query.as_ref().is_some_and(|query| query.explain)
);
forwarded!(GetRequest, GetResponse, Get, get, |_| 0, |_| true);
forwarded!(CountRequest, CountResponse, Count, count, |_| 0, |_| true);
forwarded!(ScrollRequest, ScrollResponse, Scroll, scroll, |_| 0, |_| {
    true
});

/// For operators, who want to know how it is now.
impl Forwarded for v1::ShardsRequest {
    type Answer = v1::ShardsResponse;

    const VERB: Verb = Verb::Shards;

    fn collection(&self) -> &str {
        &self.collection
    }

    fn queries(&self) -> usize {
        0
    }

    fn may_be_kept(&self) -> bool {
        false
    }

    fn take_read(&mut self) -> Option<v1::ReadOptions> {
        None
    }

    fn put_read(&mut self, _read: Option<v1::ReadOptions>) {}

    fn send(
        self,
        to: &Region,
        call: ShardCall,
    ) -> BoxFuture<'_, Result<Self::Answer, RegionError>> {
        let sent = to.search(self, call, |mut client, request| async move {
            client.shards(request).await
        });
        sent.boxed()
    }

    fn coverage(_answer: &Self::Answer) -> Option<&v1::Coverage> {
        None
    }

    fn coverage_mut(_answer: &mut Self::Answer) -> Option<&mut v1::Coverage> {
        None
    }
}
