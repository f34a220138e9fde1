//! Which of our errors each of librdkafka's codes is.

use rdkafka::error::RDKafkaErrorCode as Code;

/// What a code means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody answers, or not in time; the client goes on trying.
    Unreachable,
    /// There is no such topic or partition.
    Missing,
    /// The offset is not in the log.
    OutOfRange,
    /// The broker refuses this client.
    Denied,
    /// Over a size limit.
    TooLarge,
    /// Anything else.
    Other,
}

impl Fault {
    pub(super) fn of(code: Code) -> Self {
        match code {
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::TimedOutQueue
            | Code::MessageTimedOut
            | Code::RequestTimedOut
            | Code::NetworkException
            | Code::BrokerNotAvailable
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::ReplicaNotAvailable
            | Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::KafkaStorageError
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::NotCoordinator
            | Code::NotController
            | Code::WaitingForCoordinator
            | Code::ISRInsufficient
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::OffsetNotAvailable
            | Code::PurgeQueue
            | Code::PurgeInflight
            | Code::BrokerDestroy
            | Code::DestroyBroker
            | Code::ThrottlingQuotaExceeded
            | Code::Retry => Self::Unreachable,
            Code::UnknownTopic
            | Code::UnknownPartition
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopicId
            | Code::InvalidTopic => Self::Missing,
            Code::OffsetOutOfRange
            | Code::AutoOffsetReset
            | Code::LogTruncation
            | Code::NoOffset => Self::OutOfRange,
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SSL => Self::Denied,
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
                Self::TooLarge
            }
            _ => Self::Other,
        }
    }
}
