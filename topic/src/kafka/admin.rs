//! Topics and groups: one admin client, asked by blocking calls.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rdkafka::{
    Offset as RawOffset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::Client,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    metadata::Metadata,
};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{ClusterId, Offset, Partition, TopicId};

use super::{Config, Context, fault::Fault, topic_ids};
use crate::{Admin, AdminError, Cleanup, TopicPartition, TopicSpec, Watermarks, park::block_on};

const CLEANUP: &str = "cleanup.policy";
/// Between two looks at the metadata while a topic comes or goes.
const LOOK: Duration = Duration::from_millis(20);

/// See [`Admin`].
pub(super) struct KafkaAdmin {
    client: AdminClient<Context>,
    config: Config,
    /// A client for each group whose offsets are asked or set from outside.
    groups: Mutex<HashMap<String, Arc<BaseConsumer<Context>>>>,
}

impl KafkaAdmin {
    pub(super) fn new(config: &Config) -> Result<Self, KafkaError> {
        let client = AdminClient::from_config_and_context(&config.common(), Context::default())?;
        Ok(Self {
            client,
            config: config.clone(),
            groups: Mutex::default(),
        })
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.config.request_timeout))
            .operation_timeout(Some(self.config.request_timeout))
    }

    /// All topics: asking for one by name would make it on a broker that makes topics by itself.
    fn metadata(&self, timeout: Duration) -> Result<Metadata, AdminError> {
        self.inner()
            .fetch_metadata(None, timeout)
            .map_err(|error| self.error(&error, None))
    }

    fn inner(&self) -> &Client<Context> {
        self.client.inner()
    }

    /// Looks at the metadata until `done`, at most for the request timeout.
    fn await_metadata(
        &self,
        what: &str,
        done: impl Fn(&Metadata) -> bool,
    ) -> Result<(), AdminError> {
        let watch = Stopwatch::start();
        loop {
            let left = self.config.request_timeout.saturating_sub(watch.elapsed());
            if done(&self.metadata(left.max(LOOK))?) {
                return Ok(());
            }
            if left.is_zero() {
                return Err(AdminError::Unreachable {
                    detail: format!("{what} within {:?}", self.config.request_timeout),
                });
            }
            thread::park_timeout(LOOK);
        }
    }

    fn group(&self, group: &str) -> Result<Arc<BaseConsumer<Context>>, AdminError> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = groups.get(group) {
            return Ok(Arc::clone(known));
        }
        let client = self.config.consumer(group);
        let made = BaseConsumer::from_config_and_context(&client, Context::default());
        let made = Arc::new(made.map_err(|error| self.error(&error, None))?);
        groups.insert(group.to_owned(), Arc::clone(&made));
        Ok(made)
    }

    fn error(&self, error: &KafkaError, partition: Option<&TopicPartition>) -> AdminError {
        let code = error
            .rdkafka_error_code()
            .unwrap_or(RDKafkaErrorCode::Unknown);
        fault(code, self.inner().context(), partition)
    }
}

fn fault(
    code: RDKafkaErrorCode,
    context: &Context,
    partition: Option<&TopicPartition>,
) -> AdminError {
    let detail = code.to_string();
    match (Fault::of(code), partition) {
        (Fault::Unreachable, _) => AdminError::Unreachable {
            detail: context.reason(&detail),
        },
        (Fault::Missing, Some(partition)) => AdminError::Missing {
            partition: partition.clone(),
        },
        (Fault::Denied, _) => AdminError::Denied {
            detail: context.reason(&detail),
        },
        _ => AdminError::Refused { detail },
    }
}

impl Admin for KafkaAdmin {
    fn cluster_id(&self) -> Result<ClusterId, AdminError> {
        let timeout = self.config.request_timeout;
        match self.inner().fetch_cluster_id(timeout) {
            Some(id) => Ok(ClusterId(id.into())),
            None => Err(AdminError::Unreachable {
                detail: self
                    .inner()
                    .context()
                    .reason(&format!("no cluster id within {timeout:?}")),
            }),
        }
    }

    fn create_topic(&self, spec: &TopicSpec) -> Result<(), AdminError> {
        let out_of_range = || AdminError::Refused {
            detail: format!("{} partitions are out of range", spec.partitions),
        };
        let partitions = i32::try_from(spec.partitions).map_err(|_| out_of_range())?;
        // -1 is the broker's own default.
        let replicas = spec.replication_factor.map_or(-1, i32::from);
        let cleanup = match spec.cleanup {
            Cleanup::Compact => "compact",
            Cleanup::Delete => "delete",
        };
        let mut topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(replicas));
        if !spec.settings.contains_key(CLEANUP) {
            topic = topic.set(CLEANUP, cleanup);
        }
        for (key, value) in &spec.settings {
            topic = topic.set(key, value);
        }
        let created = block_on(self.client.create_topics(&[topic], &self.options()))
            .map_err(|error| self.error(&error, None))?;
        for outcome in created {
            match outcome {
                Ok(_) => {}
                Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => {
                    return Err(AdminError::Exists { name });
                }
                Err((name, code)) => {
                    return Err(match fault(code, self.inner().context(), None) {
                        AdminError::Refused { detail } => AdminError::Refused {
                            detail: format!("topic `{name}`: {detail}"),
                        },
                        other => other,
                    });
                }
            }
        }
        let wanted = usize::try_from(spec.partitions).unwrap_or(usize::MAX);
        let what = format!("topic `{}` has no leaders", spec.name);
        self.await_metadata(&what, |metadata| {
            let found = metadata
                .topics()
                .iter()
                .find(|topic| topic.name() == spec.name);
            found.is_some_and(|topic| {
                let led = |p: &rdkafka::metadata::MetadataPartition| p.leader() >= 0;
                topic.partitions().len() == wanted && topic.partitions().iter().all(led)
            })
        })
    }

    fn describe_topic(&self, name: &str) -> Result<Option<TopicSpec>, AdminError> {
        let metadata = self.metadata(self.config.request_timeout)?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
            return Ok(None);
        };
        let replicas = topic.partitions().iter().map(|p| p.replicas().len()).min();
        let resource = ResourceSpecifier::Topic(name);
        let described = block_on(self.client.describe_configs(&[resource], &self.options()))
            .map_err(|error| self.error(&error, None))?;
        let mut settings = BTreeMap::new();
        for resource in described {
            match resource {
                Ok(resource) => settings.extend(
                    resource
                        .entries
                        .into_iter()
                        .filter_map(|entry| Some((entry.name, entry.value?))),
                ),
                Err(code) if Fault::of(code) == Fault::Missing => return Ok(None),
                Err(code) => return Err(fault(code, self.inner().context(), None)),
            }
        }
        let compacts = settings
            .get(CLEANUP)
            .is_some_and(|policy| policy.contains("compact"));
        Ok(Some(TopicSpec {
            name: name.to_owned(),
            partitions: u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX),
            replication_factor: replicas.and_then(|count| u16::try_from(count).ok()),
            cleanup: if compacts {
                Cleanup::Compact
            } else {
                Cleanup::Delete
            },
            settings,
        }))
    }

    fn list_topics(&self) -> Result<Vec<String>, AdminError> {
        let metadata = self.metadata(self.config.request_timeout)?;
        Ok(metadata
            .topics()
            .iter()
            .map(|topic| topic.name().to_owned())
            .collect())
    }

    fn topic_ids(
        &self,
        names: &[&str],
        timeout: Duration,
    ) -> Result<Vec<Option<TopicId>>, AdminError> {
        topic_ids::ask(self.inner(), names, timeout).map_err(|error| self.error(&error, None))
    }

    fn delete_topic(&self, name: &str) -> Result<(), AdminError> {
        let deleted = block_on(self.client.delete_topics(&[name], &self.options()))
            .map_err(|error| self.error(&error, None))?;
        for outcome in deleted {
            match outcome {
                Ok(_) => {}
                Err((_, code)) if Fault::of(code) == Fault::Missing => {}
                Err((_, code)) => return Err(fault(code, self.inner().context(), None)),
            }
        }
        self.await_metadata(&format!("topic `{name}` is not gone"), |metadata| {
            metadata.topics().iter().all(|topic| topic.name() != name)
        })
    }

    fn watermarks(
        &self,
        partition: &TopicPartition,
        timeout: Duration,
    ) -> Result<Watermarks, AdminError> {
        let raw = partition.partition.to_broker();
        let ask = || (self.inner()).fetch_watermarks(&partition.topic, raw, timeout);
        let is_unknown = |error: &KafkaError| {
            matches!(
                error.rdkafka_error_code(),
                Some(RDKafkaErrorCode::UnknownTopic)
                    | Some(RDKafkaErrorCode::UnknownPartition)
                    | Some(RDKafkaErrorCode::UnknownTopicOrPartition)
            )
        };
        let asked = match ask() {
            // What a broker said that was just starting holds until somebody asks for the topic anew.
            Err(error) if is_unknown(&error) => {
                let _heard = self.inner().fetch_metadata(Some(&partition.topic), timeout);
                ask()
            }
            asked => asked,
        };
        let (low, high) = asked.map_err(|error| self.error(&error, Some(partition)))?;
        Ok(Watermarks {
            low: Offset::from_broker(low).unwrap_or_default(),
            high: Offset::from_broker(high).unwrap_or_default(),
        })
    }

    fn commit_advice(
        &self,
        group: &str,
        positions: &[(TopicPartition, Offset)],
    ) -> Result<(), AdminError> {
        if positions.is_empty() {
            return Ok(());
        }
        let client = self.group(group)?;
        client
            .commit(&offsets(positions)?, CommitMode::Sync)
            .map_err(|error| self.error(&error, positions.first().map(|(at, _)| at)))
    }

    fn committed(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Offset>>, AdminError> {
        let client = self.group(group)?;
        let mut asked = TopicPartitionList::with_capacity(partitions.len());
        for at in partitions {
            asked.add_partition(&at.topic, at.partition.to_broker());
        }
        let answered = client
            .committed_offsets(asked, self.config.request_timeout)
            .map_err(|error| self.error(&error, partitions.first()))?;
        let found: HashMap<(String, Partition), Offset> = answered
            .elements()
            .iter()
            .filter_map(|element| {
                let RawOffset::Offset(raw) = element.offset() else {
                    return None;
                };
                let partition = Partition::from_broker(element.partition())?;
                Some((
                    (element.topic().to_owned(), partition),
                    Offset::from_broker(raw)?,
                ))
            })
            .collect();
        Ok(partitions
            .iter()
            .map(|at| found.get(&(at.topic.to_string(), at.partition)).copied())
            .collect())
    }
}

/// Positions as librdkafka takes them.
pub(super) fn offsets(
    positions: &[(TopicPartition, Offset)],
) -> Result<TopicPartitionList, AdminError> {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for (at, next) in positions {
        let raw = RawOffset::Offset(next.to_broker());
        list.add_partition_offset(&at.topic, at.partition.to_broker(), raw)
            .map_err(|error| AdminError::Refused {
                detail: error.to_string(),
            })?;
    }
    Ok(list)
}
