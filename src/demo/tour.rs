//! Staying up: what a visitor may try next.

use std::{
    env, fs,
    io::{self, Write},
};

use anyhow::Context as _;
use serde_json::json;

use super::{COLLECTION, data::Data};
use crate::up::Up;

/// Prints commands to try and waits to be stopped.
pub(super) async fn stay(up: &Up, data: &Data) -> anyhow::Result<()> {
    let query = data.queries.first().context("there are no queries")?;
    let body = up.folder().join("query.json");
    let search = json!({"vector": query.vector.as_slice(), "k": 5, "with_payload": true});
    fs::write(&body, search.to_string())?;
    let point = up.folder().join("point.json");
    let mine = json!({"points": [{
        "id": "mine",
        "vector": query.vector.as_slice(),
        "payload": {"text": query.text},
    }]});
    fs::write(&point, mine.to_string())?;
    let running = up.running();
    let (query_http, gateway_http) = (running.query.http, running.gateway.http);
    let id = data.points.first().map_or("", |(id, _)| id.as_str());
    let folder = up.folder().display();
    let own = env::current_exe().unwrap_or_else(|_| "shoal".into());
    let own = own.display();
    let mut err = io::stderr().lock();
    writeln!(err, "\nstill up; Ctrl-C ends it and removes {folder}. Try:")?;
    for command in [
        format!("curl -s http://{query_http}/v1/collections/{COLLECTION}"),
        format!(
            "curl -s http://{query_http}/v1/collections/{COLLECTION}/search -d @{}",
            body.display()
        ),
        format!("curl -s http://{query_http}/v1/collections/{COLLECTION}/points/{id}"),
        format!(
            "curl -s -X PUT http://{gateway_http}/v1/collections/{COLLECTION}/points -d @{}",
            point.display()
        ),
        format!("curl -s -X DELETE http://{gateway_http}/v1/collections/{COLLECTION}/points/mine"),
        format!("curl -s http://{}/metrics", running.indexer.http),
        format!("{own} --data-dir {folder} search {COLLECTION} --id {id} -k 5"),
        format!("{own} --data-dir {folder} verify"),
        format!("kcat -b {} -L", running.kafka),
    ] {
        writeln!(err, "  {command}")?;
    }
    drop(err);
    up.deps().tasks.cancel().cancelled().await;
    Ok(())
}
