//! `shoal get` and `shoal count`.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::{Value as Json, json};
use shoal_schemas::v1;

use super::{
    Context,
    addresses::QueryFlag,
    narrow::Narrow,
    query_link::{missing, read_options, request, searches, told},
    search::payload,
};

/// Points to read.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// The collection
    collection: String,
    /// Their ids
    #[arg(required = true)]
    ids: Vec<String>,
    /// Answer vectors too
    #[arg(long)]
    with_vector: bool,
    /// Fail if an id does not begin with this and a `/`
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    insist: Insist,
    #[command(flatten)]
    query: QueryFlag,
}

/// A collection to count.
#[derive(Debug, Args)]
pub(super) struct Count {
    /// The collection
    collection: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    narrow: Narrow,
    #[command(flatten)]
    insist: Insist,
    #[command(flatten)]
    query: QueryFlag,
}

/// What the answer has to hold.
#[derive(Clone, Debug, Args)]
pub(super) struct Insist {
    /// A token whose write has to be seen; may be given several times
    #[arg(long, value_name = "TOKEN")]
    at_least: Vec<String>,
    /// Fail instead of answering without some shards
    #[arg(long)]
    require_all: bool,
    /// Answer only from replicas that are at most so far behind, milliseconds
    #[arg(long, value_name = "MS")]
    max_staleness_ms: Option<u64>,
    /// Longest time for the answer, milliseconds
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    timeout_ms: u64,
}

impl Insist {
    pub(super) fn options(&self) -> anyhow::Result<Option<v1::ReadOptions>> {
        read_options(&self.at_least, self.require_all, self.max_staleness_ms)
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl Get {
    /// One JSON object a line; ids that are not there are named on standard error.
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let mut client = searches(&self.query.address(context)).await?;
        let wanted = v1::GetRequest {
            collection: self.collection.clone(),
            ids: self.ids.clone(),
            with_vector: self.with_vector,
            read: self.insist.options()?,
            tenant: self.tenant.clone().unwrap_or_default(),
        };
        let answer = client.get(request(wanted, self.insist.timeout())).await;
        let answer = answer.map_err(|status| told(&status))?.into_inner();
        let mut out = io::stdout().lock();
        let mut absent: Vec<&str> = self.ids.iter().map(String::as_str).collect();
        for stored in &answer.points {
            let Some(point) = &stored.point else { continue };
            absent.retain(|id| *id != point.id);
            writeln!(out, "{}", shown(stored, point, self.with_vector))?;
        }
        out.flush()?;
        if let Some(note) = missing(answer.coverage.as_ref()) {
            writeln!(io::stderr(), "{note}")?;
        }
        for id in &absent {
            writeln!(
                io::stderr(),
                "there is no point `{id}` in `{}`",
                self.collection
            )?;
        }
        Ok(if absent.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl Count {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let mut client = searches(&self.query.address(context)).await?;
        let wanted = v1::CountRequest {
            collection: self.collection.clone(),
            read: self.insist.options()?,
            filter: self.narrow.filter(),
            tenant: self.narrow.tenant(),
        };
        let answer = client.count(request(wanted, self.insist.timeout())).await;
        let answer = answer.map_err(|status| told(&status))?.into_inner();
        let mut out = io::stdout().lock();
        if self.json {
            let coverage = answer.coverage.clone().unwrap_or_default();
            let all = json!({
                "points": answer.points,
                "contested": answer.contested,
                "shards_asked": coverage.shards_asked,
                "shards_answered": coverage.shards_answered,
            });
            writeln!(out, "{all}")?;
        } else {
            writeln!(out, "{}", answer.points)?;
        }
        out.flush()?;
        if !self.json && answer.contested > 0 {
            writeln!(
                io::stderr(),
                "{} ids are contested: their newest record was refused, see `shoal dlq list {}`",
                answer.contested,
                self.collection
            )?;
        }
        if let Some(note) = missing(answer.coverage.as_ref()) {
            writeln!(io::stderr(), "{note}")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A point and the place of its record, as one line.
pub(super) fn shown(stored: &v1::StoredPoint, point: &v1::Point, with_vector: bool) -> Json {
    let mut all = json!({
        "id": point.id,
        "payload": payload(&point.payload),
        "version": stored.version.to_string(),
        "topic": stored.topic,
        "partition": stored.partition,
        "offset": stored.offset,
    });
    if with_vector {
        all["vector"] = json!(point.vector);
    }
    if !point.model.is_empty() {
        all["model"] = json!(point.model);
    }
    for (name, millis) in [
        ("event_time", point.event_time_ms),
        ("expires_at", point.expires_at_ms),
    ] {
        if millis != 0 {
            all[name] = json!(millis);
        }
    }
    all
}
