//! A cluster that is not there: for a query node that learns its shard map elsewhere.
//!
//! Every call says so at once, and nothing is tried again and again in the background.

use std::{sync::Arc, time::Duration};

use shoal_schemas::{ClusterId, Offset, Record, TopicId};

use crate::{
    Admin, AdminError, Cluster, Connect, DeliveryFuture, Membership, ReadError, Reader, Start,
    TopicPartition, TopicSpec, Watermarks, WriteError, Writer,
};

const WHY: &str = "this node has no Kafka";

struct Absent;

impl Cluster {
    /// A cluster that is not there.
    pub fn absent() -> Self {
        Self {
            admin: Arc::new(Absent),
            writer: Arc::new(Absent),
            connect: Arc::new(Absent),
        }
    }
}

fn unreachable() -> AdminError {
    AdminError::Unreachable {
        detail: WHY.to_owned(),
    }
}

impl Admin for Absent {
    fn cluster_id(&self) -> Result<ClusterId, AdminError> {
        Err(unreachable())
    }

    fn create_topic(&self, _spec: &TopicSpec) -> Result<(), AdminError> {
        Err(unreachable())
    }

    fn describe_topic(&self, _name: &str) -> Result<Option<TopicSpec>, AdminError> {
        Err(unreachable())
    }

    fn list_topics(&self) -> Result<Vec<String>, AdminError> {
        Err(unreachable())
    }

    fn topic_ids(
        &self,
        _names: &[&str],
        _timeout: Duration,
    ) -> Result<Vec<Option<TopicId>>, AdminError> {
        Err(unreachable())
    }

    fn delete_topic(&self, _name: &str) -> Result<(), AdminError> {
        Err(unreachable())
    }

    fn watermarks(
        &self,
        _partition: &TopicPartition,
        _timeout: Duration,
    ) -> Result<Watermarks, AdminError> {
        Err(unreachable())
    }

    fn commit_advice(
        &self,
        _group: &str,
        _positions: &[(TopicPartition, Offset)],
    ) -> Result<(), AdminError> {
        Err(unreachable())
    }

    fn committed(
        &self,
        _group: &str,
        _partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Offset>>, AdminError> {
        Err(unreachable())
    }
}

impl Writer for Absent {
    fn send(&self, to: &TopicPartition, _record: &Record) -> Result<DeliveryFuture, WriteError> {
        Err(WriteError::Unreachable {
            partition: to.to_string(),
            detail: WHY.to_owned(),
        })
    }

    fn cluster_id(&self) -> Result<ClusterId, WriteError> {
        Err(WriteError::Unreachable {
            partition: "any topic".to_owned(),
            detail: WHY.to_owned(),
        })
    }
}

impl Connect for Absent {
    fn open_reader(
        &self,
        _starts: &[(TopicPartition, Start)],
    ) -> Result<Box<dyn Reader>, ReadError> {
        Err(ReadError::Unreachable {
            detail: WHY.to_owned(),
        })
    }

    fn join(&self, _group: &str, _topics: &[String]) -> Result<Box<dyn Membership>, ReadError> {
        Err(ReadError::Unreachable {
            detail: WHY.to_owned(),
        })
    }
}
