//! A record on its way to the log.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::FutureExt;
use shoal_schemas::{PointId, Token, Version};

use super::{PublishError, Shared, room::Outcome};

/// A record on its way; resolves to its token once the log has it.
///
/// Dropping it does not take the record back.
#[must_use = "the record is in the log only once this has resolved"]
pub struct Delivery {
    pub(super) outcome: Outcome,
    pub(super) id: PointId,
    pub(super) version: Version,
    pub(super) publisher: Arc<Shared>,
    pub(super) size_bytes: usize,
}

impl Delivery {
    /// The point.
    pub fn id(&self) -> &PointId {
        &self.id
    }

    /// Key and value, bytes.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

impl Future for Delivery {
    type Output = Result<Token, PublishError>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.outcome {
            Outcome::Own(delivery) => ready!(delivery.as_mut().poll(task)),
            Outcome::Marked(delivery) => ready!(delivery.poll_unpin(task)),
        };
        Poll::Ready(match outcome {
            Ok(place) => {
                self.publisher.acknowledged.increment(1);
                Ok(Token {
                    cluster: self.publisher.cluster.clone(),
                    topic: self.publisher.topic.clone(),
                    partition: place.partition,
                    offset: place.offset,
                    key: self.id.clone(),
                    version: self.version,
                    region: None,
                })
            }
            Err(source) => {
                self.publisher.failed.increment(1);
                Err(PublishError::Write {
                    id: self.id.clone(),
                    source,
                })
            }
        })
    }
}
