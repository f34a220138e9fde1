//! A collection that routes by ranges of ids, over real Kafka: our own producers and foreign ones, a
//! stray record, tenants that ask few shards, and a restart.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::json;
use shoal_runtime::eventually;
use shoal_schemas::{Reason, v1};

use crate::harness::{DEADLINE, child, client, role::Role, state, topic, world::World};

const NAME: &str = "ranged";

fn create(world: &World) -> shoal_schemas::Collection {
    let arguments = [
        "collection",
        "create",
        NAME,
        "--dim",
        "4",
        "--metric",
        "l2",
        "--partitions",
        "4",
        "--split-key",
        "b",
        "--split-key",
        "cat/m",
        "--split-key",
        "d",
    ];
    assert!(child::succeed(&arguments, &world.variables()).contains("created"));
    let wrong = [
        "collection",
        "create",
        "wrong",
        "--dim",
        "4",
        "--metric",
        "l2",
        "--partitions",
        "4",
        "--split-key",
        "b",
        "--split-key",
        "a",
        "--split-key",
        "d",
    ];
    let (status, _, told) = child::run(&wrong, &world.variables());
    assert!(!status.success() && told.contains("split key 1"), "{told}");
    eventually(DEADLINE, "the definition to be read", || {
        let state = world.control.snapshot();
        state
            .collections
            .values()
            .find(|one| one.name.as_str() == NAME)
            .cloned()
    })
}

/// Writes `key|value` lines into a partition that the caller has picked.
fn kcat(world: &World, partition: u32, lines: &[&str]) {
    let mut command = Command::new("kcat");
    command.args(["-P", "-q", "-K", "|", "-b", &world.kafka.bootstrap()]);
    command.args([
        "-t",
        &format!("embeddings.{NAME}"),
        "-p",
        &partition.to_string(),
    ]);
    let mut kcat = command
        .stdin(Stdio::piped())
        .spawn()
        .expect("setup/packages installs kcat");
    let mut input = kcat.stdin.take().unwrap();
    input
        .write_all((lines.join("\n") + "\n").as_bytes())
        .unwrap();
    drop(input);
    assert!(kcat.wait().unwrap().success());
}

/// The ids a tenant's search finds, and how many shards were asked.
fn of_tenant(query: &client::Query, tenant: &str) -> (BTreeSet<String>, u32) {
    let ask = v1::SearchRequest {
        tenant: tenant.to_owned(),
        read: client::at_least(&[]),
        ..client::search(NAME, &[0.0; 4], 100)
    };
    // The query node may have read less of the control topic than the shards' own word is of.
    let found = eventually(DEADLINE, "the tenant's shards to serve", || {
        query.search(ask.clone()).ok()
    });
    let ids = client::ids(&found.hits).into_iter().map(str::to_owned);
    (ids.collect(), found.coverage.unwrap().shards_asked)
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn are_served(
    world: &World,
    indexer: &Role,
    query: &client::Query,
    collection: &shoal_schemas::Collection,
) {
    let state = state::settled(&[indexer.settings.grpc], &world.cluster, collection);
    assert_eq!((state.points, state.contested), (7, 0));
    assert_eq!(
        of_tenant(query, "cat"),
        (set(&["cat/a", "cat/m", "cat/z"]), 2)
    );
    assert_eq!(of_tenant(query, "dog"), (set(&["dog/1"]), 1));
    assert_eq!(of_tenant(query, "a"), (set(&["a/1"]), 1));
    let all = query.search(client::search(NAME, &[0.0; 4], 100)).unwrap();
    assert_eq!((all.hits.len(), all.coverage.unwrap().shards_asked), (7, 4));
}

#[test]
fn ranges_hold_from_the_command_line_through_kafka_to_a_tenants_search() {
    let world = World::new("ranges");
    let collection = create(&world);
    let indexer = world.indexer("indexer").start();
    let query_role = world.query("query").start();
    let gateway_role = world.gateway("gateway").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);

    // Our own producers pick the partition: the gateway, and the command line.
    let point = |id: &str, at: f32| json!({"id": id, "vector": [at, 0.0, 0.0, 0.0]});
    let body = json!({"points": [point("a/1", 1.0), point("ant", 2.0), point("cat/a", 3.0), point("cat/m", 4.0)]});
    let path = format!("/v1/collections/{NAME}/points");
    let written = eventually(DEADLINE, "the gateway to know the collection", || {
        let put = reqwest::Method::PUT;
        let (status, told) = client::json(put, gateway_role.settings.http, &path, &body);
        (status == 200).then_some(told)
    });
    assert_eq!(written["tokens"].as_array().unwrap().len(), 4, "{written}");
    let file = world.folder.join("points.jsonl");
    std::fs::write(
        &file,
        format!("{}\n{}\n", point("cat/z", 5.0), point("dog/1", 6.0)),
    )
    .unwrap();
    let publish = ["publish", NAME, file.to_str().unwrap()];
    child::succeed(&publish, &world.variables());

    // A foreign client names the partition itself; one that does so wrongly is told how.
    kcat(&world, 1, &[r#"bee/1|{"vector":[7,0,0,0]}"#]);
    kcat(&world, 0, &[r#"cow/1|{"vector":[8,0,0,0]}"#]);
    are_served(&world, &indexer, &query, &collection);
    let letters = topic::dead_letters(&world.cluster, &collection);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].rejection.reason, Reason::WrongPartition);
    let told = &letters[0].rejection.detail;
    for part in [
        "partition 0",
        "belongs into 2",
        "from `cat/m` up to `d`",
        "split_keys",
    ] {
        assert!(told.contains(part), "{told}");
    }

    // A delete lands where its upsert did, and everything is there again after a restart.
    child::succeed(&["delete", NAME, "--id", "ant"], &world.variables());
    kcat(&world, 0, &[r#"ant|{"vector":[2,0,0,0]}"#]);
    indexer.had_no_errors(&[]);
    indexer.child.kill();
    let indexer = world.indexer("indexer").start();
    are_served(&world, &indexer, &query, &collection);
    let shown = child::succeed(&["collection", "describe", NAME], &world.variables());
    assert!(shown.contains("cat/m"), "{shown}");
    indexer.had_no_errors(&[]);
    query_role.had_no_errors(&[]);
}
