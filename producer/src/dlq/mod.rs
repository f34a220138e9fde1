//! Refused records: listed, shown, and put back.
//!
//! The dead-letter topic is read from its beginning to the end it has at the moment of the call;
//! nothing is remembered between calls and nothing in the topic is changed. That a record was put
//! back is written behind its entry; from then on the entry is listed only where it is asked for.
//! A record that a shard refused twice, because it read it twice, is one entry.

mod retry;
mod scan;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use shoal_runtime::{ErrorKind, tasks::blocking};
use shoal_schemas::{
    CollectionName, Offset, Partition, Reason, Source,
    dlq::{Entry, Item},
};
use shoal_topic::{AdminError, Cluster, ReadError};

pub use retry::{Correction, Retried, RetryError, retry, retry_all};

/// The place of a refused record in the topic it was published to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// Its topic; `None` = the collection's home topic.
    pub topic: Option<String>,
    /// Its partition.
    pub partition: Partition,
    /// Its offset.
    pub offset: Offset,
}

/// A text that names no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no record; write partition/offset or topic/partition/offset, as the list does"
)]
pub struct OriginError(String);

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let refused = || OriginError(text.to_owned());
        let mut parts = text.rsplitn(3, '/');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let offset = Offset(number().ok_or_else(refused)?);
        let partition = number().and_then(|partition| u32::try_from(partition).ok());
        Ok(Self {
            partition: Partition(partition.ok_or_else(refused)?),
            offset,
            topic: parts.next().map(str::to_owned),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(topic) = &self.topic {
            write!(f, "{topic}/")?;
        }
        write!(f, "{}/{}", self.partition, self.offset)
    }
}

impl Origin {
    /// Where the entry's record was.
    pub fn of(entry: &Entry) -> Self {
        Self {
            topic: Some(entry.source.topic.to_string()),
            partition: entry.source.partition,
            offset: entry.offset,
        }
    }

    fn is_of(&self, entry: &Entry, collection: &CollectionName) -> bool {
        let home = collection.topic();
        let topic = self.topic.as_ref().unwrap_or(&home);
        **topic == *entry.source.topic
            && self.partition == entry.source.partition
            && self.offset == entry.offset
    }
}

/// Which entries are meant. The default is all of them, the newest thousand listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Of one reason only.
    pub reason: Option<Reason>,
    /// Of one id only. Entries without content do not tell theirs.
    pub id: Option<String>,
    /// Published to one partition only.
    pub partition: Option<Partition>,
    /// Those that were put back, too.
    pub retried: bool,
    /// Listed at most, the newest.
    pub limit: usize,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            reason: None,
            id: None,
            partition: None,
            retried: false,
            limit: 1000,
        }
    }
}

impl Filter {
    fn takes(&self, entry: &Entry) -> bool {
        let id = || entry.record.key.as_deref();
        self.reason
            .is_none_or(|reason| reason == entry.rejection.reason)
            && self
                .partition
                .is_none_or(|partition| partition == entry.source.partition)
            && self
                .id
                .as_deref()
                .is_none_or(|wanted| id() == Some(wanted.as_bytes()))
    }
}

/// One refused record, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it was.
    pub origin: Origin,
    /// Why it was refused.
    pub reason: Reason,
    /// The same for people.
    pub detail: String,
    /// When it was refused, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Its key as text (bytes that are none replaced); `None` if it had none. Where content is
    /// withheld, a hash.
    pub id: Option<String>,
    /// Length of its value.
    pub value_bytes: usize,
    /// Whether it was a delete.
    pub is_delete: bool,
    /// Whether its content stayed where it was, so that it cannot be put back from here.
    pub is_withheld: bool,
    /// Whether it was put back. Known of a list's entries.
    pub is_retried: bool,
}

impl From<&Entry> for Listed {
    fn from(entry: &Entry) -> Self {
        let key = entry.record.key.as_deref();
        Self {
            origin: Origin::of(entry),
            reason: entry.rejection.reason,
            detail: entry.rejection.detail.clone(),
            time_ms: entry.time_ms,
            id: key.map(|key| String::from_utf8_lossy(key).into_owned()),
            value_bytes: entry.record.value.as_ref().map_or(0, bytes::Bytes::len),
            is_delete: entry.record.value.is_none(),
            is_withheld: entry.is_withheld(),
            is_retried: false,
        }
    }
}

/// What the filter found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The newest of them, oldest first, at most the filter's limit.
    pub entries: Vec<Listed>,
    /// How many there are in all.
    pub matched: u64,
    /// How many more there are that were put back, and left out for that.
    pub left_out: u64,
    /// Records of the topic that are no entries, or of a newer version.
    pub unreadable: u64,
}

/// Why a dead-letter topic was not read.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// There is none.
    #[error("topic `{topic}` does not exist; creating the collection again makes it")]
    Missing {
        /// The topic.
        topic: String,
    },
    /// The broker does not describe it.
    #[error("cannot look at topic `{topic}`")]
    Describe {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: AdminError,
    },
    /// It cannot be read to its end.
    #[error("cannot read topic `{topic}`")]
    Read {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: ReadError,
    },
}

impl ScanError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::Caller,
            Self::Describe { source, .. } => source.kind(),
            Self::Read { source, .. } => source.kind(),
        }
    }
}

/// Lists the refused records of a collection.
///
/// # Errors
/// [`ScanError`].
pub async fn list(
    cluster: &Cluster,
    collection: &CollectionName,
    filter: Filter,
) -> Result<Listing, ScanError> {
    let (cluster, collection) = (cluster.clone(), collection.clone());
    blocking(move || {
        let done = put_back(&cluster, &collection)?;
        let mut seen = Seen::default();
        let mut newest = BTreeMap::new();
        let mut listing = Listing::default();
        listing.unreadable = scan::scan(&cluster, &collection, |item| {
            let Item::Entry(entry) = item else {
                return true;
            };
            if !filter.takes(&entry) || !seen.is_new(&entry) {
                return true;
            }
            let is_retried = done.has(&entry);
            if is_retried && !filter.retried {
                listing.left_out += 1;
                return true;
            }
            listing.matched += 1;
            let listed = Listed {
                is_retried,
                ..Listed::from(&entry)
            };
            newest.insert((entry.time_ms, Origin::of(&entry)), listed);
            if newest.len() > filter.limit {
                newest.pop_first();
            }
            true
        })?;
        listing.entries = newest.into_values().collect();
        Ok(listing)
    })
    .await
}

/// The places of all records that were put back. Their marks stand behind their entries, so that
/// the topic is read once for them and once more for the entries.
fn put_back(cluster: &Cluster, collection: &CollectionName) -> Result<Seen, ScanError> {
    let mut done = Seen::default();
    scan::scan(cluster, collection, |item| {
        if let Item::Mark(mark) = item {
            done.note(&mark.source, mark.offset);
        }
        true
    })?;
    Ok(done)
}

/// The entry of one refused record, with its content; `None` if there is none.
///
/// # Errors
/// [`ScanError`].
pub async fn show(
    cluster: &Cluster,
    collection: &CollectionName,
    origin: &Origin,
) -> Result<Option<Entry>, ScanError> {
    let (cluster, collection, origin) = (cluster.clone(), collection.clone(), origin.clone());
    blocking(move || {
        let mut found = None;
        scan::scan(&cluster, &collection, |item| {
            if let Item::Entry(entry) = item
                && origin.is_of(&entry, &collection)
            {
                found = Some(entry);
            }
            found.is_none()
        })?;
        Ok(found)
    })
    .await
}

/// Places of refused records: tells an entry from its repetition. Holds a few bytes a place.
#[derive(Default)]
struct Seen {
    sources: BTreeMap<Source, usize>,
    places: BTreeSet<(usize, Offset)>,
}

impl Seen {
    fn is_new(&mut self, entry: &Entry) -> bool {
        self.note(&entry.source, entry.offset)
    }

    /// Notes a place; false if it was noted before.
    fn note(&mut self, source: &Source, offset: Offset) -> bool {
        let next = self.sources.len();
        let source = match self.sources.get(source) {
            Some(known) => *known,
            None => *self.sources.entry(source.clone()).or_insert(next),
        };
        self.places.insert((source, offset))
    }

    fn has(&self, entry: &Entry) -> bool {
        let source = self.sources.get(&entry.source);
        source.is_some_and(|source| self.places.contains(&(*source, entry.offset)))
    }
}

#[cfg(test)]
mod tests;
