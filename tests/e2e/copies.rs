//! Two copies of a shard that differ: the ids are named.

use serde_json::Value;
use shoal_producer::{PublishConfig, Publisher};
use shoal_runtime::{clock::System, eventually};
use shoal_schemas::PointId;
use shoal_topic::kafka;

use crate::harness::{
    DEADLINE, child,
    model::Model,
    seed::Random,
    wait,
    workload::points,
    world::{World, delete, now_ms, publish},
};

const DIM: u32 = 16;

#[test]
fn ids_that_a_running_shard_and_a_stopped_one_differ_about_are_named() {
    let mut random = Random::from_environment("copies");
    let world = World::new("copies");
    let collection = world.collection("copies", DIM, 1);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let many = points(&model, &mut random, "old", 300);
    publish(&publisher, &mut model, many);
    let stopped = world.indexer("stopped").start();
    world.settled(&stopped, &collection);
    let folder = stopped.settings.data().join("shards/copies/0");
    stopped.child.terminate();

    let running = world.indexer("running").start();
    let query = world.query("query").start();
    world.settled(&running, &collection);
    let mut variables = world.variables();
    variables.push((
        "SHOAL_QUERY__GRPC_LISTEN".to_owned(),
        query.settings.grpc.to_string(),
    ));
    let folder = folder.to_str().unwrap();
    let verify = [
        "verify",
        "copies",
        "--shard",
        "0",
        "--json",
        "--against-folder",
        folder,
    ];
    // The query node learns of the shard's owner a moment after it serves.
    let equal = eventually(DEADLINE, "the copies to be equal", || {
        let (status, out, _) = child::run(&verify, &variables);
        status.success().then_some(out)
    });
    assert_eq!(verdict(&equal)["verdict"], "equal", "{equal}");

    let gone: PointId = model.points().keys().next().unwrap().clone();
    delete(&publisher, &mut model, std::slice::from_ref(&gone));
    let new = points(&model, &mut random, "new", 3);
    publish(&publisher, &mut model, new);
    world.settled(&running, &collection);
    let (status, behind, told) = child::run(&verify, &variables);
    assert_eq!(status.code(), Some(3), "{told}");
    assert!(
        verdict(&behind)["verdict"]
            .as_str()
            .unwrap()
            .contains("not comparable")
    );
    assert_eq!(verdict(&behind)["differences"], Value::Null);
    let (status, named, told) = child::run(&[&verify[..], &["--anyway"]].concat(), &variables);
    assert_eq!(status.code(), Some(3), "{told}");
    let differences = &verdict(&named)["differences"];
    let new = ["new-0", "new-1", "new-2"].map(|id| (id, "only_here"));
    let wanted = [&new[..], &[(gone.as_str(), "only_there")]].concat();
    let found: Vec<(&str, &str)> = differences["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["id"].as_str().unwrap(), one["how"].as_str().unwrap()))
        .collect();
    assert_eq!((found, &differences["all"]), (wanted, &Value::Bool(true)));

    // Without a store there is nowhere to save to.
    let (status, _, told) = child::run(&["snapshot", "create", "copies"], &variables);
    assert!(
        !status.success() && told.contains("indexer.snapshot.url"),
        "{told}"
    );
    running.had_no_errors(&[]);
}

#[test]
fn copies_at_the_same_positions_that_differ_are_different() {
    let mut random = Random::from_environment("copies");
    let world = World::new("copies-differ");
    let collection = world.collection("copies", DIM, 1);
    let mut model = Model::new(&collection);
    let many = points(&model, &mut random, "id", 50);
    publish(&world.publisher(&collection), &mut model, many.clone());
    let stopped = world.indexer("stopped").start();
    world.settled(&stopped, &collection);
    let folder = stopped.settings.data().join("shards/copies/0");
    stopped.child.terminate();

    // Another history of as many records.
    let admin = &world.cluster.admin;
    let topic = collection.name.topic();
    let spec = admin.describe_topic(&topic).unwrap().unwrap();
    admin.delete_topic(&topic).unwrap();
    admin.create_topic(&spec).unwrap();
    let cluster = kafka::connect(&kafka::Config::to(world.kafka.bootstrap())).unwrap();
    let config = PublishConfig::default();
    let publisher = Publisher::new(&cluster, System::shared(), collection.clone(), config);
    publish(&wait(publisher).unwrap(), &mut model, many);

    let running = world.indexer("running").start();
    let query = world.query("query").start();
    let now = world.settled(&running, &collection);
    model.assert_is(&now, now_ms());
    let mut variables = world.variables();
    let address = query.settings.grpc.to_string();
    variables.push(("SHOAL_QUERY__GRPC_LISTEN".to_owned(), address));
    let against = ["--against-folder", folder.to_str().unwrap()];
    let verify = ["verify", "copies", "--shard", "0", "--json", "--ids", "2"];
    let verify = [&verify[..], &against].concat();
    let told = eventually(DEADLINE, "the query node to know the shard", || {
        let (status, out, _) = child::run(&verify, &variables);
        let told: Option<Value> = serde_json::from_str(&out).ok();
        let told = told.filter(|told| told["verdicts"][0]["verdict"] == "DIFFERENT")?;
        assert_eq!(status.code(), Some(1));
        Some(told)
    });
    let differences = &told["verdicts"][0]["differences"];
    let named = differences["ids"].as_array().unwrap().iter();
    let named: Vec<_> = named.map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(named, ["id-0", "id-1"], "{told}");
    assert_eq!(differences["all"], false, "{told}");
}

fn verdict(out: &str) -> Value {
    let out: Value = serde_json::from_str(out).unwrap();
    out["verdicts"][0].clone()
}
