//! What was done and what came of it: operations, the topic as read back, the copies in the end; as JSON lines.
//!
//! All times are microseconds of one monotonic clock, the recorder's.

use std::{collections::BTreeMap, io};

use serde::{Deserialize, Serialize};

/// One run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    pub(crate) run: Run,
    /// In the order of their numbers.
    pub(crate) operations: Vec<Operation>,
    /// The topic, by partition and offset.
    pub(crate) records: Vec<Record>,
    /// What copies of shards held when all was quiet.
    pub(crate) copies: Vec<Copy>,
    /// What was done to the processes; for people.
    pub(crate) troubles: Vec<Trouble>,
}

/// What the run was about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    /// The partition of each key that is ever written.
    pub(crate) keys: BTreeMap<String, u32>,
    pub(crate) partitions: u32,
}

/// A call of a client, from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) number: u64,
    /// Who made it; a process makes one after the other.
    pub(crate) process: u32,
    /// Whether the process carries what it has seen: its writes, the places of points, the offsets of coverage.
    pub(crate) is_session: bool,
    pub(crate) invoked_us: u64,
    pub(crate) completed_us: u64,
    pub(crate) call: Call,
    pub(crate) outcome: Outcome,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    Upsert {
        key: String,
        stamp: u64,
    },
    /// Changes the stamp in the payload, and the vector if it says so.
    Patch {
        key: String,
        stamp: u64,
        with_vector: bool,
        if_version: Option<u64>,
    },
    Delete {
        key: String,
    },
    /// For the points nearest to the vector of a stamp.
    Search {
        near: u64,
        k: usize,
        exact: bool,
        demands: Demands,
    },
    Get {
        keys: Vec<String>,
        demands: Demands,
    },
    Count {
        demands: Demands,
    },
}

impl Call {
    /// What a read insists on.
    pub(crate) fn demands(&self) -> Option<&Demands> {
        match self {
            Self::Upsert { .. } | Self::Patch { .. } | Self::Delete { .. } => None,
            Self::Search { demands, .. } | Self::Get { demands, .. } | Self::Count { demands } => {
                Some(demands)
            }
        }
    }

    /// The key a write is about.
    pub(crate) fn written(&self) -> Option<&str> {
        match self {
            Self::Upsert { key, .. } | Self::Patch { key, .. } | Self::Delete { key } => Some(key),
            Self::Search { .. } | Self::Get { .. } | Self::Count { .. } => None,
        }
    }

    /// The stamp a write leaves.
    pub(crate) fn stamp(&self) -> Option<u64> {
        match self {
            Self::Upsert { stamp, .. } | Self::Patch { stamp, .. } => Some(*stamp),
            _ => None,
        }
    }
}

/// What a read insists on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Demands {
    /// Where the log keeps writes that have to show.
    pub(crate) tokens: Vec<Place>,
    pub(crate) require_all: bool,
    pub(crate) max_staleness_us: Option<u64>,
}

/// The place of a record in the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// A write was acknowledged.
    Written { place: Place, version: u64 },
    /// A read was answered.
    Answered(Answer),
    /// A read brought nothing, or a write that was promised not to have been made.
    Failed { why: String },
    /// A condition did not hold, or there was no point to change: if the record ever was in the log, it was mended.
    Refused { why: String },
    /// A write that may have been made or not, or may still be.
    Unknown { why: String },
}

/// An answer to a read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Hits in their order, or points.
    pub(crate) seen: Vec<Seen>,
    /// Of a count.
    pub(crate) points: Option<u64>,
    pub(crate) shards: Vec<Covered>,
}

/// What an answer says of one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Covered {
    pub(crate) shard: u32,
    pub(crate) answered: bool,
    pub(crate) node: String,
    pub(crate) next_offset: u64,
    pub(crate) lag_us: u64,
}

/// A point as an answer shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) key: String,
    pub(crate) version: u64,
    pub(crate) content: Content,
    /// Of a hit.
    pub(crate) distance: Option<f32>,
    /// Of a point by id.
    pub(crate) place: Option<Place>,
}

/// What a point holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// Who wrote it last, by its payload.
    pub(crate) stamp: Option<u64>,
    /// Who wrote its vector, by its payload.
    pub(crate) of_vector: Option<u64>,
    /// Who wrote its vector, by the vector.
    pub(crate) vector: Option<u64>,
}

impl Content {
    /// Of an upsert, or a patch with a vector.
    pub(crate) fn whole(stamp: u64) -> Self {
        Self {
            stamp: Some(stamp),
            of_vector: Some(stamp),
            vector: Some(stamp),
        }
    }
}

/// One record of the topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) place: Place,
    pub(crate) key: String,
    pub(crate) version: u64,
    /// None of a delete.
    pub(crate) content: Option<Content>,
}

/// What one node held of one shard when all was quiet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Copy {
    pub(crate) node: String,
    pub(crate) shard: u32,
    pub(crate) points: Vec<Seen>,
}

/// Something done to a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub(crate) at_us: u64,
    pub(crate) what: String,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
enum Line {
    Run(Run),
    Trouble(Trouble),
    Operation(Operation),
    Record(Record),
    Copy(Copy),
}

impl History {
    /// Writes it as JSON lines.
    ///
    /// # Errors
    /// The writer's own.
    pub(crate) fn write(&self, mut to: impl io::Write) -> io::Result<()> {
        let mut line = |line: Line| -> io::Result<()> {
            serde_json::to_writer(&mut to, &line)?;
            to.write_all(b"\n")
        };
        line(Line::Run(self.run.clone()))?;
        for one in &self.troubles {
            line(Line::Trouble(one.clone()))?;
        }
        for one in &self.operations {
            line(Line::Operation(one.clone()))?;
        }
        for one in &self.records {
            line(Line::Record(one.clone()))?;
        }
        for one in &self.copies {
            line(Line::Copy(one.clone()))?;
        }
        Ok(())
    }

    /// Reads what [`History::write`] wrote.
    ///
    /// # Errors
    /// The reader's own, and lines that are none of ours.
    pub(crate) fn read(from: impl io::BufRead) -> io::Result<Self> {
        let mut history = Self::default();
        for text in from.lines() {
            match serde_json::from_str(&text?)? {
                Line::Run(run) => history.run = run,
                Line::Trouble(one) => history.troubles.push(one),
                Line::Operation(one) => history.operations.push(one),
                Line::Record(one) => history.records.push(one),
                Line::Copy(one) => history.copies.push(one),
            }
        }
        Ok(history)
    }

    /// Reads that were answered.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&Operation, &Demands, &Answer)> {
        self.operations.iter().filter_map(|operation| {
            let demands = operation.call.demands()?;
            match &operation.outcome {
                Outcome::Answered(answer) => Some((operation, demands, answer)),
                _ => None,
            }
        })
    }

    /// Writes that were acknowledged.
    pub(crate) fn acknowledged(&self) -> impl Iterator<Item = (&Operation, &str, Place, u64)> {
        self.operations.iter().filter_map(|operation| {
            let key = operation.call.written()?;
            match &operation.outcome {
                Outcome::Written { place, version } => Some((operation, key, *place, *version)),
                _ => None,
            }
        })
    }
}
