//! `shoal patch`, and `shoal delete --if-version`: changes that depend on the point as it is, through
//! the gateway.
//!
//! Standard output gets the token of what was written.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::anyhow;
use clap::Args;
use serde_json::{Map, Value as Json};
use shoal_schemas::{
    CollectionName, Payload, Token, json,
    v1::{self, publish_client::PublishClient, write_result::Outcome},
};
use tonic::{Code, transport::Channel};

use super::{
    Context, Usage,
    addresses::GatewayFlag,
    kafka_link::collection_name,
    query_link::{connect, request, told},
};

/// A change of part of a point.
#[derive(Debug, Args)]
pub(super) struct Patch {
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    /// The point
    #[arg(long)]
    id: String,
    /// A payload field to add or replace: JSON where it reads as such, else text; may be given
    /// several times
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// A payload field to take away; may be given several times
    #[arg(long, value_name = "FIELD")]
    unset: Vec<String>,
    /// The new vector, a JSON list
    #[arg(long, value_name = "JSON")]
    vector: Option<String>,
    /// The new model's name
    #[arg(long)]
    model: Option<String>,
    /// The new expiry: milliseconds since 1970, or a time as 2030-01-01T00:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "no_expiry")]
    expires_at: Option<String>,
    /// Take the expiry away
    #[arg(long)]
    no_expiry: bool,
    /// Only if the point has this version, as `shoal get` prints it
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Longest time for the change, milliseconds
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    timeout_ms: u64,
    #[command(flatten)]
    gateway: GatewayFlag,
}

impl Patch {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let patch = self.read()?;
        let mut client = gateway(&self.gateway.address(context)).await?;
        let wanted = v1::PatchRequest {
            collection: self.collection.to_string(),
            points: vec![patch],
        };
        let timeout = Duration::from_millis(self.timeout_ms);
        let answer = client.patch(request(wanted, timeout)).await;
        let answer = answer.map_err(|status| told(&status))?.into_inner();
        tell(answer.results)
    }

    /// The patch as a message. What only the collection's definition shows, the gateway checks.
    fn read(&self) -> Result<v1::PointPatch, Usage> {
        let mut fields = Map::new();
        for one in &self.set {
            let (name, text) = one
                .split_once('=')
                .ok_or_else(|| Usage(format!("--set `{one}` is not FIELD=VALUE")))?;
            let value = serde_json::from_str(text).unwrap_or_else(|_| Json::from(text));
            if value.is_null() {
                return Err(Usage(format!("--set {name}=null; use --unset {name}")));
            }
            fields.insert(name.to_owned(), value);
        }
        let set = Payload::from_json(fields).map_err(|error| Usage(error.to_string()))?;
        let vector: Vec<f32> = match &self.vector {
            Some(text) => serde_json::from_str(text)
                .map_err(|error| Usage(format!("--vector is no list of numbers: {error}")))?,
            None => Vec::new(),
        };
        let expires_at_ms = match &self.expires_at {
            Some(text) => Some(
                json::decode_time(text)
                    .ok_or_else(|| Usage(format!("--expires-at `{text}` is no time")))?,
            ),
            None => self.no_expiry.then_some(0),
        };
        Ok(v1::PointPatch {
            id: self.id.clone(),
            set: set.to_proto(),
            unset: self.unset.clone(),
            vector,
            model: self.model.clone(),
            expires_at_ms,
            if_version: self.if_version,
        })
    }
}

/// Deletes a point where it has this version.
pub(super) async fn delete_if(
    context: &Context,
    flag: &GatewayFlag,
    collection: &CollectionName,
    id: &str,
    version: u64,
) -> anyhow::Result<ExitCode> {
    let mut client = gateway(&flag.address(context)).await?;
    let wanted = v1::DeleteRequest {
        collection: collection.to_string(),
        ids: vec![id.to_owned()],
        conditions: vec![v1::Condition {
            if_version: Some(version),
        }],
    };
    let answer = client
        .delete(request(wanted, Duration::from_secs(10)))
        .await;
    let answer = answer.map_err(|status| told(&status))?.into_inner();
    tell(answer.results)
}

async fn gateway(address: &str) -> anyhow::Result<PublishClient<Channel>> {
    Ok(PublishClient::new(connect("the gateway", address).await?))
}

fn tell(results: Vec<v1::WriteResult>) -> anyhow::Result<ExitCode> {
    for result in results {
        match result.outcome {
            Some(Outcome::Token(token)) => {
                let token = Token::from_proto(token)?;
                writeln!(io::stdout(), "{token}")?;
            }
            Some(Outcome::Failure(failure)) => {
                return Err(match Code::from(failure.code) {
                    Code::InvalidArgument => Usage(failure.message).into(),
                    code => anyhow!("{} ({code:?})", failure.message),
                });
            }
            None => return Err(anyhow!("the gateway answered nothing for a point")),
        }
    }
    Ok(ExitCode::SUCCESS)
}
