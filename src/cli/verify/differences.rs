//! The first ids that two copies of a shard differ about, and how.

use std::io::{self, Write};

use serde_json::{Value as Json, json};
use shoal_indexer::shard::buckets::MAX_BUCKETS;
use shoal_schemas::buckets::{BUCKETS, Difference, How, compare};

use super::copies::Copy;

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    /// Parts of the digest that differ; about as many ids do, at least.
    parts: usize,
    /// Some of the ids.
    named: Vec<Difference>,
    /// Whether those are all.
    all: bool,
}

/// Looks until `limit` ids that differ are found, or there are no more.
pub(super) async fn find(here: &Copy, there: &Copy, limit: usize) -> anyhow::Result<Found> {
    let (ours, at) = here.buckets().await?;
    let (theirs, elsewhere) = there.buckets().await?;
    let parts = ours.differing(&theirs);
    let mut named = Vec::new();
    let mut looked_at = 0;
    for some in parts.chunks(MAX_BUCKETS) {
        if named.len() >= limit {
            break;
        }
        let ours = here.rows(some, &at).await?;
        let theirs = there.rows(some, &elsewhere).await?;
        named.extend(compare(&ours, &theirs));
        looked_at += some.len();
    }
    let all = looked_at == parts.len() && named.len() <= limit;
    named.truncate(limit);
    Ok(Found {
        parts: parts.len(),
        named,
        all,
    })
}

impl Found {
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        for one in &self.named {
            writeln!(to, "  {}: {}", one.id.as_str(), text(&one.how))?;
        }
        if self.all {
            writeln!(to, "  no other id differs")
        } else {
            let parts = self.parts;
            writeln!(
                to,
                "  and more: {parts} of {BUCKETS} parts of the digest differ"
            )
        }
    }

    pub(super) fn json(&self) -> Json {
        let ids = self.named.iter().map(|one| {
            let mut row = json!({"id": one.id.as_str(), "how": name(&one.how)});
            match one.how {
                How::Versions { here, there } => {
                    row["here"] = json!(here.raw());
                    row["there"] = json!(there.raw());
                }
                How::Content { version } => row["version"] = json!(version.raw()),
                _ => {}
            }
            row
        });
        json!({
            "parts": self.parts,
            "all": self.all,
            "ids": ids.collect::<Vec<Json>>(),
        })
    }
}

fn name(how: &How) -> &'static str {
    match how {
        How::OnlyHere => "only_here",
        How::OnlyThere => "only_there",
        How::ContestedHere => "contested_here",
        How::ContestedThere => "contested_there",
        How::Versions { .. } => "versions",
        How::Content { .. } => "content",
    }
}

fn text(how: &How) -> String {
    match how {
        How::OnlyHere => "only here".into(),
        How::OnlyThere => "only there".into(),
        How::ContestedHere => "contested here, not there".into(),
        How::ContestedThere => "contested there, not here".into(),
        How::Versions { here, there } => {
            format!("version {} here, {} there", here.raw(), there.raw())
        }
        How::Content { version } => format!(
            "version {} in both, with another vector, payload, model or time",
            version.raw()
        ),
    }
}
