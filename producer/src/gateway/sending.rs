//! Prepared records: sent in their order, then waited for.

use std::time::Duration;

use shoal_runtime::{ErrorKind, tasks::blocking};
use shoal_schemas::{Partition, Token};
use shoal_topic::{AdminError, TopicPartition, WriteError};

use super::{CallError, calls::Calls};
use crate::{Delivery, PublishError, Publisher, publisher::Prepared};

/// How long the broker has to say whether it is there, when a call has run out of time.
const PROBE: Duration = Duration::from_secs(2);

/// Records of one call that are on their way to the log.
pub(super) struct Sent {
    publisher: Publisher,
    /// Each with its place in the call.
    deliveries: Vec<(usize, Delivery)>,
    /// Those of other regions, which are there already.
    elsewhere: Vec<(usize, Token)>,
}

impl Sent {
    /// Adds what other regions wrote of the same call.
    pub(super) fn add(&mut self, elsewhere: Vec<(usize, Token)>) {
        self.elsewhere.extend(elsewhere);
    }
}

impl Calls {
    /// Sends records, unless the queue to the log is full.
    pub(super) fn send_now(
        &self,
        publisher: &Publisher,
        prepared: &[(usize, Prepared)],
    ) -> Result<Sent, CallError> {
        let of = prepared.len();
        let mut deliveries = Vec::with_capacity(of);
        for (at, record) in prepared {
            match publisher.try_send(record) {
                Ok(delivery) => deliveries.push((*at, delivery)),
                Err(full) if full.is_queue_full() => {
                    return Err(CallError::QueueFull {
                        sent: deliveries.len(),
                        of,
                    });
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(Sent {
            publisher: publisher.clone(),
            deliveries,
            elsewhere: Vec::new(),
        })
    }

    /// Sends records; waits for room in the queue to the log, as long as for its answer.
    pub(super) async fn send_waiting(
        &self,
        publisher: &Publisher,
        prepared: &[(usize, Prepared)],
    ) -> Result<Sent, CallError> {
        let of = prepared.len();
        let mut deliveries = Vec::with_capacity(of);
        for (at, record) in prepared {
            match tokio::time::timeout(self.deadline, publisher.send(record)).await {
                Ok(Ok(delivery)) => deliveries.push((*at, delivery)),
                Ok(Err(error)) => return Err(failed(error)),
                Err(_elapsed) => {
                    return Err(CallError::QueueFull {
                        sent: deliveries.len(),
                        of,
                    });
                }
            }
        }
        Ok(Sent {
            publisher: publisher.clone(),
            deliveries,
            elsewhere: Vec::new(),
        })
    }

    /// Waits until the log has acknowledged all; answers one token a record, in order.
    pub(super) async fn settle(&self, sent: Sent) -> Result<Vec<Token>, CallError> {
        let Sent {
            publisher,
            deliveries,
            elsewhere: mut tokens,
        } = sent;
        let (of, elsewhere) = (deliveries.len(), tokens.len());
        let all = async {
            for (at, delivery) in deliveries {
                let token = delivery.await.map_err(failed)?;
                let region = self.residency.own().cloned();
                tokens.push((at, Token { region, ..token }));
            }
            Ok::<_, CallError>(())
        };
        match tokio::time::timeout(self.deadline, all).await {
            Ok(outcome) => outcome?,
            Err(_elapsed) => {
                let acknowledged = tokens.len() - elsewhere;
                return Err(self.late(&publisher, acknowledged, of).await);
            }
        }
        if elsewhere > 0 {
            tokens.sort_unstable_by_key(|(at, _)| *at);
        }
        Ok(tokens.into_iter().map(|(_, token)| token).collect())
    }

    /// Tells a broker that is away from one that is slow.
    async fn late(&self, publisher: &Publisher, acknowledged: usize, of: usize) -> CallError {
        let admin = self.cluster.admin.clone();
        let at = TopicPartition {
            topic: publisher.collection().topic().into(),
            partition: Partition(0),
        };
        match blocking(move || admin.watermarks(&at, PROBE)).await {
            Err(AdminError::Unreachable { detail }) => CallError::Away {
                source: WriteError::Unreachable {
                    partition: publisher.collection().topic(),
                    detail,
                },
            },
            _ => CallError::Deadline {
                acknowledged,
                of,
                deadline: self.deadline,
            },
        }
    }
}

fn failed(error: PublishError) -> CallError {
    match error {
        PublishError::Write { source, .. } if source.kind() == ErrorKind::Retry => {
            CallError::Away { source }
        }
        error => CallError::Refused(error),
    }
}
