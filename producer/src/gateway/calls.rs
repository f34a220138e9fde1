//! What a call does, whichever way it came: check all, send all, wait for all.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use shoal_runtime::{clock::Clock, tasks::blocking};
use shoal_schemas::{
    Collection, CollectionName, Point, PointId, Rejection, Token, avro::Framing, json,
    name::NameError, patch::PatchError, point::IdError, v1,
};
use shoal_topic::{
    Cluster, Deps, WriteError,
    control::{ControlHandle, ControlState},
    registry::{Registry, RegistryError},
};

use super::{
    Config,
    owners::Owners,
    quota::{QuotaError, Quotas},
    residency::{
        Part, Place, RegionError, Regions, Residency, ResidencyError, Rule, Said, Sorted, Write,
        parts, placed,
    },
    resolve::Deadline,
};
use crate::{PublishConfig, PublishError, Publisher, publisher::Prepared};

/// Points or ids in a call at most.
pub(super) const MAX_POINTS: usize = 1000;
/// More points than this are checked off the threads that answer.
const CHECKED_INLINE: usize = 4;
/// Names of collections shown to who asked for another.
const SHOWN: usize = 20;

/// Why a call failed. Where it says so, records before the fault may be in the log.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No such name is possible.
    #[error("collection name is refused")]
    Name(#[from] NameError),
    /// No such collection.
    #[error("collection `{name}` does not exist; {existing}")]
    UnknownCollection {
        /// As asked for.
        name: CollectionName,
        /// What there is.
        existing: String,
    },
    /// The definitions are not known yet.
    #[error("definitions are still being read from Kafka; repeat the call in a moment")]
    NotCaughtUp,
    /// What the name stands for is about to be written into another topic.
    #[error(
        "`{name}` is being moved to another topic, writes that depend on a point wait for that; repeat the call in a moment, nothing was written"
    )]
    Moving {
        /// The name.
        name: CollectionName,
    },
    /// Nothing to do.
    #[error("call has no {what}, allowed are 1 to {MAX_POINTS}")]
    Empty {
        /// `points` or `ids`.
        what: &'static str,
    },
    /// Too much at once.
    #[error("call has {found} {what}, allowed are 1 to {MAX_POINTS}; split it")]
    TooMany {
        /// `points` or `ids`.
        what: &'static str,
        /// How many.
        found: usize,
    },
    /// A point is faulty; nothing was published.
    #[error("point {index}{} is refused, nothing was published", quoted(.id.as_deref()))]
    Point {
        /// Its place in the call, from 0.
        index: usize,
        /// Its id, if it says one.
        id: Option<String>,
        /// Why.
        #[source]
        source: Rejection,
    },
    /// A point cannot be a record; nothing was published.
    #[error("point {index} is refused, nothing was published")]
    Unpublishable {
        /// Its place in the call, from 0.
        index: usize,
        /// Why.
        #[source]
        source: PublishError,
    },
    /// An id is faulty; nothing was published.
    #[error("id {index} is refused, nothing was deleted")]
    Id {
        /// Its place in the call, from 0.
        index: usize,
        /// Why.
        #[source]
        source: IdError,
    },
    /// A patch or a condition is faulty; nothing was published.
    #[error("point {index} is refused, nothing was published")]
    Patch {
        /// Its place in the call, from 0.
        index: usize,
        /// Why.
        #[source]
        source: PatchError,
    },
    /// Not one condition a point.
    #[error(
        "call has {conditions} conditions for {points} points, allowed are none or one a point"
    )]
    Conditions {
        /// Points or ids.
        points: usize,
        /// Conditions.
        conditions: usize,
    },
    /// The body is no JSON of the right shape.
    #[error("body does not read, wanted is {wanted}: {detail}")]
    Body {
        /// The shape.
        wanted: &'static str,
        /// Where it stops reading.
        detail: String,
    },
    /// The body is over the limit.
    #[error("body is over {limit_bytes} bytes; split the call")]
    BodyTooLarge {
        /// The gateway's limit.
        limit_bytes: usize,
    },
    /// The sender's queue is full.
    #[error(
        "the queue to Kafka is full after {sent} of {of} records; repeat the call a little later"
    )]
    QueueFull {
        /// Sent before.
        sent: usize,
        /// In the call.
        of: usize,
    },
    /// The schema registry gives no id to write with; nothing was published.
    #[error("nothing was published, the schema's id is not known")]
    Schema(#[from] RegistryError),
    /// What the call says of where its records have to stay; nothing was published.
    #[error("call is refused, nothing was published")]
    Said(#[source] Box<ResidencyError>),
    /// A record that may be written nowhere from here; nothing was published.
    #[error("point {index} is refused, nothing was published")]
    Residency {
        /// Its place in the call, from 0.
        index: usize,
        /// Why.
        #[source]
        source: Box<ResidencyError>,
    },
    /// The part of a call that belongs to another region; the other parts may be written.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Kafka does not answer.
    #[error(
        "Kafka does not answer; records of this call may still be written once it does: repeat the call, the same point twice is the same point"
    )]
    Away {
        /// Why.
        #[source]
        source: WriteError,
    },
    /// Kafka answers, but has not acknowledged all records in time.
    #[error(
        "{acknowledged} of {of} records were acknowledged within {deadline:?}; the others may still be written: repeat the call, the same point twice is the same point"
    )]
    Deadline {
        /// Acknowledged.
        acknowledged: usize,
        /// In the call.
        of: usize,
        /// How long was waited.
        deadline: Duration,
    },
    /// A tenant has written as much as it may for now; nothing was published.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// A line of a batch is faulty.
    #[error(
        "line {line} is refused; the lines before it were written, it and those behind it were not"
    )]
    Line {
        /// Its number, from 1.
        line: u64,
        /// Why.
        #[source]
        source: Box<CallError>,
    },
    /// A batch broke off.
    #[error("body broke off behind line {line}: {detail}; the lines up to there were written")]
    BrokeOff {
        /// Lines read.
        line: u64,
        /// Why.
        detail: String,
    },
    /// Kafka refuses a record.
    #[error("Kafka refused a record; those before it may be written")]
    Refused(#[source] PublishError),
}

impl From<ResidencyError> for CallError {
    fn from(error: ResidencyError) -> Self {
        Self::Said(Box::new(error))
    }
}

fn quoted(id: Option<&str>) -> String {
    id.map_or(String::new(), |id| {
        format!(" (id `{}`)", id.chars().take(80).collect::<String>())
    })
}

/// Something that may be a point.
pub(super) trait Candidate: Send + 'static {
    /// Its id, for an error's text.
    fn id(&self) -> Option<String>;

    fn decode(self, collection: &Collection) -> Result<(PointId, Point), Rejection>;
}

impl Candidate for v1::Point {
    fn id(&self) -> Option<String> {
        Some(self.id.clone())
    }

    fn decode(self, collection: &Collection) -> Result<(PointId, Point), Rejection> {
        Point::from_proto(self, collection)
    }
}

impl Candidate for Box<RawValue> {
    fn id(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Named {
            id: serde_json::Value,
        }
        let named: Named = serde_json::from_str(self.get()).ok()?;
        match named.id {
            serde_json::Value::String(id) => Some(id),
            other => Some(other.to_string()),
        }
    }

    fn decode(self, collection: &Collection) -> Result<(PointId, Point), Rejection> {
        json::decode_line(self.get().as_bytes(), collection)
    }
}

/// What a call is to, what it says of its records, and when it has to be answered.
#[derive(Clone)]
pub(super) struct To<'a> {
    pub(super) collection: &'a str,
    pub(super) said: Said,
    pub(super) deadline: Deadline,
}

impl<'a> To<'a> {
    /// If what the call says reads.
    pub(super) fn new(
        collection: &'a str,
        said: Result<Said, ResidencyError>,
        deadline: Deadline,
    ) -> Result<Self, CallError> {
        Ok(Self {
            collection,
            said: said?,
            deadline,
        })
    }
}

/// A call's records, checked and not sent.
pub(super) struct Batch {
    pub(super) publisher: Publisher,
    /// Written here, each with its place in the call.
    pub(super) here: Vec<(usize, Prepared)>,
    pub(super) there: Vec<Part>,
}

pub(super) struct Calls {
    pub(super) cluster: Cluster,
    pub(super) control: ControlHandle,
    clock: Arc<dyn Clock>,
    pub(super) publish: PublishConfig,
    /// Asked for a schema id of each collection, unless one is set for all.
    registry: Option<Arc<Registry>>,
    pub(super) deadline: Duration,
    pub(super) owners: Owners,
    pub(super) quotas: Quotas,
    pub(super) residency: Residency,
    pub(super) regions: Regions,
    publishers: Mutex<BTreeMap<CollectionName, Publisher>>,
}

impl Calls {
    pub(super) fn new(config: &Config, deps: &Deps, registry: Option<Arc<Registry>>) -> Self {
        Self {
            registry: registry.filter(|_| config.schema_id.is_none()),
            cluster: deps.cluster.clone(),
            control: deps.control.clone(),
            clock: Arc::clone(&deps.clock),
            publish: PublishConfig {
                origin: config.origin.clone(),
                framing: config.schema_id.map_or(Framing::SingleObject, |schema_id| {
                    Framing::Confluent { schema_id }
                }),
                versions: true,
            },
            deadline: config.deadline,
            owners: Owners::new(),
            quotas: Quotas::new(config.quota.clone(), Arc::clone(&deps.clock)),
            residency: Residency::new(config.residency.clone()),
            regions: Regions::new(&config.residency),
            publishers: Mutex::default(),
        }
    }

    /// Publishes complete points; answers one token a point, in order.
    pub(super) async fn upsert<C: Candidate>(
        &self,
        to: &To<'_>,
        points: Vec<C>,
    ) -> Result<Vec<Token>, CallError> {
        let batch = self.prepared_upsert(to, points).await?;
        let mut sent = self.send_now(&batch.publisher, &batch.here)?;
        sent.add(self.elsewhere(batch.there, to.deadline).await?);
        self.settle(sent).await
    }

    /// Publishes deletes; answers one token an id, in order.
    pub(super) async fn delete(
        &self,
        to: &To<'_>,
        ids: &[String],
    ) -> Result<Vec<Token>, CallError> {
        let batch = self.prepared_delete(to, ids).await?;
        let mut sent = self.send_now(&batch.publisher, &batch.here)?;
        sent.add(self.elsewhere(batch.there, to.deadline).await?);
        self.settle(sent).await
    }

    /// Checks points, sorts them by region, and has their tenants' quotas take those that are written here.
    pub(super) async fn prepared_upsert<C: Candidate>(
        &self,
        to: &To<'_>,
        points: Vec<C>,
    ) -> Result<Batch, CallError> {
        check_count("points", points.len())?;
        let publisher = self.publisher(to.collection).await?;
        let rule = self.rule(to, &publisher)?;
        let sorted = if points.len() <= CHECKED_INLINE {
            prepare(&publisher, &rule, points)?
        } else {
            let publisher = publisher.clone();
            blocking(move || prepare(&publisher, &rule, points)).await?
        };
        self.take(&publisher, &sorted.here)?;
        let there = parts(sorted.there, |points| {
            Write::Upsert(v1::UpsertRequest {
                collection: to.collection.to_owned(),
                points,
                conditions: Vec::new(),
            })
        });
        Ok(Batch {
            publisher,
            here: sorted.here,
            there,
        })
    }

    /// Checks ids, sorts them by region, and has their tenants' quotas take the deletes that are written here.
    pub(super) async fn prepared_delete(
        &self,
        to: &To<'_>,
        ids: &[String],
    ) -> Result<Batch, CallError> {
        check_count("ids", ids.len())?;
        let publisher = self.publisher(to.collection).await?;
        let rule = self.rule(to, &publisher)?;
        let mut sorted = Sorted::default();
        for (index, id) in ids.iter().enumerate() {
            let id = PointId::new(id).map_err(|source| CallError::Id { index, source })?;
            match placed(&rule, index, &id)? {
                Place::Here(region) => {
                    let delete = publisher.prepare_delete(&id).resident(region);
                    sorted.here.push((index, delete));
                }
                Place::There(region) => sorted.add_there(region, index, id.as_str().to_owned()),
            }
        }
        self.take(&publisher, &sorted.here)?;
        let there = parts(sorted.there, |ids| {
            Write::Delete(v1::DeleteRequest {
                collection: to.collection.to_owned(),
                ids,
                conditions: Vec::new(),
            })
        });
        Ok(Batch {
            publisher,
            here: sorted.here,
            there,
        })
    }

    /// Has the tenants' quotas take records, all of them or none.
    pub(super) fn take(
        &self,
        publisher: &Publisher,
        records: &[(usize, Prepared)],
    ) -> Result<(), CallError> {
        let sizes = records.iter().map(|(_, record)| {
            let value_bytes = record.value().map_or(0, Bytes::len);
            (record.id().as_str(), value_bytes)
        });
        Ok(self.quotas.take(publisher.collection(), sizes)?)
    }

    /// The publisher of what a name stands for, as it is defined now.
    pub(super) async fn publisher(&self, name: &str) -> Result<Publisher, CallError> {
        let name: CollectionName = name.parse()?;
        self.publisher_in(&self.control.snapshot(), name).await
    }

    /// The same by one state of the definitions.
    pub(super) async fn publisher_in(
        &self,
        state: &ControlState,
        name: CollectionName,
    ) -> Result<Publisher, CallError> {
        if state.caught_up_at.is_none() {
            return Err(CallError::NotCaughtUp);
        }
        let Some(defined) = state.written(&name) else {
            let names: BTreeSet<_> = (state.collections.keys())
                .chain(state.aliases.keys())
                .collect();
            let existing = existing(names.into_iter());
            return Err(CallError::UnknownCollection { name, existing });
        };
        let name = defined.name.clone();
        if let Some(known) = self.publishers().get(&name)
            && known.collection() == defined
        {
            return Ok(known.clone());
        }
        let clock = Arc::clone(&self.clock);
        let mut publish = self.publish.clone();
        if let Some(registry) = &self.registry {
            publish = publish.through(registry, defined.home()).await?;
        }
        let made = Publisher::new(&self.cluster, clock, defined.clone(), publish).await;
        let made = made.map_err(|source| CallError::Away { source })?;
        // Of two calls that both made one, the first one's stays: versions rise within one.
        let mut publishers = self.publishers();
        Ok(match publishers.entry(name) {
            btree_map::Entry::Occupied(known) if known.get().collection() == defined => {
                known.get().clone()
            }
            btree_map::Entry::Occupied(mut outdated) => {
                outdated.insert(made.clone());
                made
            }
            btree_map::Entry::Vacant(place) => place.insert(made).clone(),
        })
    }

    fn publishers(&self) -> std::sync::MutexGuard<'_, BTreeMap<CollectionName, Publisher>> {
        self.publishers
            .lock()
            .expect("nothing panics while it holds this lock")
    }
}

/// Checks points, and encodes them for where each is written.
pub(super) fn prepare<C: Candidate>(
    publisher: &Publisher,
    rule: &Rule,
    points: Vec<C>,
) -> Result<Sorted<Prepared, v1::Point>, CallError> {
    let mut sorted = Sorted::default();
    for (index, candidate) in points.into_iter().enumerate() {
        let named = candidate.id();
        let (id, point) =
            candidate
                .decode(publisher.collection())
                .map_err(|source| CallError::Point {
                    index,
                    id: named,
                    source,
                })?;
        let prepared = publisher
            .prepare(&id, &point)
            .map_err(|source| CallError::Unpublishable { index, source })?;
        match placed(rule, index, &id)? {
            Place::Here(region) => sorted.here.push((index, prepared.resident(region))),
            Place::There(region) => sorted.add_there(region, index, point.to_proto(&id)),
        }
    }
    Ok(sorted)
}

pub(super) fn check_count(what: &'static str, found: usize) -> Result<(), CallError> {
    match found {
        0 => Err(CallError::Empty { what }),
        1..=MAX_POINTS => Ok(()),
        _ => Err(CallError::TooMany { what, found }),
    }
}

fn existing<'a>(names: impl ExactSizeIterator<Item = &'a CollectionName>) -> String {
    let found = names.len();
    let shown: Vec<&str> = names.take(SHOWN).map(CollectionName::as_str).collect();
    match found {
        0 => "there is none yet, create it first".into(),
        _ if found > SHOWN => format!("there are {} and {} more", shown.join(", "), found - SHOWN),
        _ => format!("there are: {}", shown.join(", ")),
    }
}
