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
    deliveries: Vec<Delivery>,
}

impl Calls {
    /// Sends records, unless the queue to the log is full.
    pub(super) fn send_now(
        &self,
        publisher: &Publisher,
        prepared: &[Prepared],
    ) -> Result<Sent, CallError> {
        let of = prepared.len();
        let mut deliveries = Vec::with_capacity(of);
        for record in prepared {
            match publisher.try_send(record) {
                Ok(delivery) => deliveries.push(delivery),
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
        })
    }

    /// Sends records; waits for room in the queue to the log, as long as for its answer.
    pub(super) async fn send_waiting(
        &self,
        publisher: &Publisher,
        prepared: &[Prepared],
    ) -> Result<Sent, CallError> {
        let of = prepared.len();
        let mut deliveries = Vec::with_capacity(of);
        for record in prepared {
            match tokio::time::timeout(self.deadline, publisher.send(record)).await {
                Ok(Ok(delivery)) => deliveries.push(delivery),
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
        })
    }

    /// Waits until the log has acknowledged all; answers one token a record, in order.
    pub(super) async fn settle(&self, sent: Sent) -> Result<Vec<Token>, CallError> {
        let Sent {
            publisher,
            deliveries,
        } = sent;
        let of = deliveries.len();
        let mut tokens = Vec::with_capacity(of);
        let all = async {
            for delivery in deliveries {
                tokens.push(delivery.await.map_err(failed)?);
            }
            Ok(())
        };
        match tokio::time::timeout(self.deadline, all).await {
            Ok(outcome) => outcome.map(|()| tokens),
            Err(_elapsed) => Err(self.late(&publisher, tokens.len(), of).await),
        }
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
