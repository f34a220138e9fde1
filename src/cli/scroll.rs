//! `shoal scroll`: points in the order of their ids.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use shoal_schemas::v1;

use super::{
    Context,
    addresses::QueryFlag,
    narrow::{Fields, Narrow},
    query_link::{missing, request, searches, told},
    read::{Insist, shown},
};

/// Points of one page of an answer.
const PAGE: u32 = 1_000;

/// A collection to read through.
#[derive(Debug, Args)]
pub(super) struct Scroll {
    /// The collection
    collection: String,
    #[command(flatten)]
    narrow: Narrow,
    /// Begin behind this id
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// End after so many points [default: the last]
    #[arg(long)]
    limit: Option<u64>,
    /// Answer vectors too
    #[arg(long)]
    with_vector: bool,
    #[command(flatten)]
    fields: Fields,
    #[command(flatten)]
    insist: Insist,
    #[command(flatten)]
    query: QueryFlag,
}

impl Scroll {
    /// One JSON object a line.
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let mut client = searches(&self.query.address(context)).await?;
        let mut out = io::stdout().lock();
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut after_id = self.after.clone().unwrap_or_default();
        while left > 0 {
            let wanted = v1::ScrollRequest {
                collection: self.collection.clone(),
                filter: self.narrow.filter(),
                tenant: self.narrow.tenant(),
                after_id,
                limit: u32::try_from(left).unwrap_or(PAGE).min(PAGE),
                with_vector: self.with_vector,
                include_payload: self.fields.include.clone(),
                exclude_payload: self.fields.exclude.clone(),
                read: self.insist.options()?,
            };
            let answer = client.scroll(request(wanted, self.insist.timeout())).await;
            let answer = answer.map_err(|status| told(&status))?.into_inner();
            for stored in &answer.points {
                let Some(point) = &stored.point else { continue };
                writeln!(out, "{}", shown(stored, point, self.with_vector))?;
                left = left.saturating_sub(1);
            }
            out.flush()?;
            if let Some(note) = missing(answer.coverage.as_ref()) {
                writeln!(io::stderr(), "{note}")?;
            }
            if answer.next_after_id.is_empty() {
                break;
            }
            after_id = answer.next_after_id;
        }
        Ok(ExitCode::SUCCESS)
    }
}
