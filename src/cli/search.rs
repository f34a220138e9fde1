//! `shoal search`: the nearest points, asked of a query node.

use std::{
    fs,
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args};
use serde_json::{Value as Json, json};
use shoal_schemas::{Payload, v1};
use tonic::transport::Channel;

use super::{
    Context, Usage,
    addresses::QueryFlag,
    narrow::{Fields, Narrow, value},
    query_link::{missing, read_options, request, searches, told},
    table::Table,
};

/// A search.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("query_vector").required(true))]
pub(super) struct Search {
    /// The collection
    collection: String,
    /// The vector, as a JSON array
    #[arg(long, group = "query_vector", value_name = "JSON")]
    vector: Option<String>,
    /// A file with the vector as a JSON array, or an object with a `vector`; `-` is standard input
    #[arg(long, group = "query_vector", value_name = "FILE")]
    vector_file: Option<PathBuf>,
    /// Search with the vector of this stored point
    #[arg(long, group = "query_vector")]
    id: Option<String>,
    /// Points like this stored one, which is not among the answer; may be given several times
    #[arg(long, group = "query_vector", value_name = "ID")]
    like: Vec<String>,
    /// With --like: points unlike this stored one; may be given several times
    #[arg(long, requires = "like", conflicts_with_all = ["vector", "vector_file", "id"], value_name = "ID")]
    unlike: Vec<String>,
    /// How many
    #[arg(short, long, default_value_t = 10)]
    k: u32,
    /// Beam width in the graph [default: the collection's]
    #[arg(long)]
    ef: Option<u32>,
    /// Scan every point instead of walking the graph
    #[arg(long)]
    exact: bool,
    #[command(flatten)]
    narrow: Narrow,
    /// Only points at this distance or nearer
    #[arg(long, allow_negative_numbers = true, value_name = "DISTANCE")]
    max_distance: Option<f32>,
    /// Answer the nearest points of each value of this declared field; --k counts values
    #[arg(long, value_name = "FIELD")]
    group_by: Option<String>,
    /// Points a value, with --group-by
    #[arg(long, default_value_t = 3, requires = "group_by", value_name = "N")]
    group_size: u32,
    /// Skip so many points of the answer
    #[arg(long, default_value_t = 0, value_name = "N")]
    offset: u32,
    /// Say what each shard did
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    fields: Fields,
    /// Fail instead of answering without some shards
    #[arg(long)]
    require_all: bool,
    /// Answer only from replicas that are at most so far behind, milliseconds
    #[arg(long, value_name = "MS")]
    max_staleness_ms: Option<u64>,
    /// A token whose write has to be seen; may be given several times
    #[arg(long, value_name = "TOKEN")]
    at_least: Vec<String>,
    /// Print JSON, vectors too if --with-vector is given
    #[arg(long)]
    json: bool,
    /// Answer vectors too (with --json)
    #[arg(long, requires = "json")]
    with_vector: bool,
    /// Longest time for the answer, milliseconds
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    timeout_ms: u64,
    #[command(flatten)]
    query: QueryFlag,
}

impl Search {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let timeout = Duration::from_millis(self.timeout_ms);
        let given = self.given()?;
        let mut client = searches(&self.query.address(context)).await?;
        let answer = if self.like.is_empty() {
            let vector = self.vector(given, &mut client, timeout).await?;
            let wanted = self.search_for(vector)?;
            client.search(request(wanted, timeout)).await
        } else {
            let wanted = self.recommend()?;
            client.recommend(request(wanted, timeout)).await
        };
        let answer = answer.map_err(|status| told(&status))?.into_inner();
        self.tell(&answer)?;
        if let Some(note) = missing(answer.coverage.as_ref()) {
            writeln!(io::stderr(), "{note}")?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The vector that was given, or that of the point with `--id`.
    async fn vector(
        &self,
        given: Option<Vec<f32>>,
        client: &mut v1::search_client::SearchClient<Channel>,
        timeout: Duration,
    ) -> anyhow::Result<Vec<f32>> {
        match (given, &self.id) {
            (Some(vector), _) => Ok(vector),
            (None, Some(id)) => {
                let wanted = v1::GetRequest {
                    collection: self.collection.clone(),
                    ids: vec![id.clone()],
                    with_vector: true,
                    read: read_options(&self.at_least, false, self.max_staleness_ms)?,
                    tenant: self.narrow.tenant(),
                };
                let found = client.get(request(wanted, timeout)).await;
                let found = found.map_err(|status| told(&status))?.into_inner();
                let point = found
                    .points
                    .into_iter()
                    .next()
                    .and_then(|stored| stored.point);
                match point {
                    Some(point) => Ok(point.vector),
                    None => bail!("there is no point `{id}` in `{}`", self.collection),
                }
            }
            (None, None) => bail!(Usage("say what to search for".into())),
        }
    }

    fn search_for(&self, vector: Vec<f32>) -> anyhow::Result<v1::SearchRequest> {
        let query = self.asked();
        Ok(v1::SearchRequest {
            collection: self.collection.clone(),
            vector,
            k: query.k,
            ef: query.ef,
            with_vector: query.with_vector,
            with_payload: query.with_payload,
            read: read_options(&self.at_least, self.require_all, self.max_staleness_ms)?,
            exact: query.exact,
            filter: query.filter,
            max_distance: query.max_distance,
            group_by: query.group_by,
            include_payload: query.include_payload,
            exclude_payload: query.exclude_payload,
            offset: query.offset,
            after: query.after,
            explain: query.explain,
            tenant: query.tenant,
        })
    }

    fn recommend(&self) -> anyhow::Result<v1::RecommendRequest> {
        Ok(v1::RecommendRequest {
            collection: self.collection.clone(),
            positive: self.like.clone(),
            negative: self.unlike.clone(),
            query: Some(self.asked()),
            read: read_options(&self.at_least, self.require_all, self.max_staleness_ms)?,
        })
    }

    /// All but the vector.
    fn asked(&self) -> v1::Query {
        v1::Query {
            vector: Vec::new(),
            k: self.k,
            ef: self.ef.unwrap_or(0),
            with_vector: self.with_vector,
            with_payload: true,
            exact: self.exact,
            filter: self.narrow.filter(),
            max_distance: self.max_distance,
            group_by: self.group_by.as_ref().map(|field| v1::GroupBy {
                field: field.clone(),
                group_size: self.group_size,
            }),
            include_payload: self.fields.include.clone(),
            exclude_payload: self.fields.exclude.clone(),
            offset: self.offset,
            after: None,
            explain: self.explain,
            tenant: self.narrow.tenant(),
        }
    }

    /// The vector on the command line or in a file.
    fn given(&self) -> anyhow::Result<Option<Vec<f32>>> {
        let text = match (&self.vector, &self.vector_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) if path.as_os_str() == "-" => {
                let mut text = String::new();
                io::stdin().read_to_string(&mut text)?;
                text
            }
            (None, Some(path)) => fs::read_to_string(path)
                .with_context(|| format!("cannot read `{}`", path.display()))?,
            (None, None) => return Ok(None),
        };
        Ok(Some(parse_vector(&text)?))
    }

    fn tell(&self, answer: &v1::SearchResponse) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", self.as_json(answer))?;
            return Ok(());
        }
        let cells = |hit: &v1::Hit| {
            [
                // Rounding may leave a zero with a sign, which says nothing.
                format!("{:.6}", hit.distance).replace("-0.000000", "0.000000"),
                hit.id.clone(),
                payload(&hit.payload).to_string(),
            ]
        };
        if self.group_by.is_some() {
            let mut table = Table::new(["GROUP", "DISTANCE", "ID", "PAYLOAD"]);
            for group in &answer.groups {
                let named = value(group.value.as_ref()).to_string();
                for hit in &group.hits {
                    let [distance, id, payload] = cells(hit);
                    table.row([named.clone(), distance, id, payload]);
                }
            }
            table.write(&mut out)?;
        } else {
            let mut table = Table::new(["DISTANCE", "ID", "PAYLOAD"]);
            for hit in &answer.hits {
                table.row(cells(hit));
            }
            table.write(&mut out)?;
        }
        for told in &answer.explain {
            writeln!(io::stderr(), "{}", explained(told))?;
        }
        Ok(())
    }

    fn as_json(&self, answer: &v1::SearchResponse) -> Json {
        let hits =
            |hits: &[v1::Hit]| -> Vec<Json> { hits.iter().map(|hit| self.hit(hit)).collect() };
        let coverage = answer.coverage.clone().unwrap_or_default();
        let mut all = json!({
            "shards_asked": coverage.shards_asked,
            "shards_answered": coverage.shards_answered,
        });
        if self.group_by.is_some() {
            let groups = answer.groups.iter().map(
                |group| json!({"value": value(group.value.as_ref()), "hits": hits(&group.hits)}),
            );
            all["groups"] = groups.collect();
        } else {
            all["hits"] = hits(&answer.hits).into();
        }
        if self.explain {
            all["explain"] = answer.explain.iter().map(explained).collect();
        }
        all
    }

    fn hit(&self, hit: &v1::Hit) -> Json {
        let mut all = json!({
            "id": hit.id,
            "distance": hit.distance,
            "version": hit.version.to_string(),
            "payload": payload(&hit.payload),
        });
        if self.with_vector {
            all["vector"] = json!(hit.vector);
        }
        all
    }
}

/// What one shard did, as JSON.
fn explained(told: &v1::ShardExplain) -> Json {
    json!({
        "shard": told.shard,
        "plan": told.plan().as_str_name().trim_start_matches("SEARCH_PLAN_").to_lowercase(),
        "estimated_matches": told.estimated_matches,
        "matches": told.matches,
        "rows_scanned": told.rows_scanned,
        "segments": told.segments,
        "plan_us": told.plan_us,
        "search_us": told.search_us,
        "rescore_us": told.rescore_us,
        "payload_us": told.payload_us,
    })
}

/// A payload as plain JSON.
pub(super) fn payload(fields: &std::collections::HashMap<String, v1::Value>) -> Json {
    match Payload::from_proto(fields.clone()) {
        Ok(payload) => Json::Object(payload.to_json()),
        Err(error) => Json::String(error.to_string()),
    }
}

/// A JSON array of numbers, or an object that has one as its `vector`.
fn parse_vector(text: &str) -> Result<Vec<f32>, Usage> {
    let refused = |error: serde_json::Error| {
        Usage(format!("the vector is no JSON array of numbers: {error}"))
    };
    let json: Json = serde_json::from_str(text).map_err(refused)?;
    let array = match json {
        Json::Object(mut fields) => fields.remove("vector").unwrap_or_default(),
        other => other,
    };
    serde_json::from_value(array).map_err(refused)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::parse_vector;

    #[test]
    fn a_vector_reads_alone_or_in_an_object() {
        assert_eq!(parse_vector("[1, -0.5]").unwrap(), [1.0, -0.5]);
        assert_eq!(
            parse_vector(r#"{"id": "a", "vector": [2]}"#).unwrap(),
            [2.0]
        );
        for text in ["", "1", "[\"a\"]", "{}"] {
            assert!(parse_vector(text).is_err(), "{text}");
        }
    }
}
