//! A topic that is dropped and made anew under its name, as any Kafka client can, and filled until it is longer than the
//! old one was: its offsets look like those of the old one, and what a shard holds is not what it says.

use shoal_producer::{PublishConfig, Publisher};
use shoal_runtime::{clock::System, eventually};
use shoal_schemas::Collection;
use shoal_topic::kafka::{self, Config};

use crate::harness::{
    DEADLINE, child, client, folder,
    model::Model,
    role::{Role, SET_ASIDE},
    seed::Random,
    state, topic, wait, workload,
    world::{self, World, now_ms},
};

const DIM: u32 = 8;
const PARTITIONS: u32 = 2;
const COLLECTION: &str = "anew";
const OLD_POINTS: usize = 200;
const NEW_POINTS: usize = 400;

/// Drops the collection's topic, makes it again and fills it with more records than it had: what it holds then.
fn make_anew(
    world: &World,
    collection: &Collection,
    random: &mut Random,
    prefix: &str,
    points: usize,
) -> Model {
    let name = collection.name.topic();
    let admin = &world.cluster.admin;
    let spec = admin.describe_topic(&name).unwrap().unwrap();
    let before = topic::ends(&world.cluster, collection);
    admin.delete_topic(&name).unwrap();
    admin.create_topic(&spec).unwrap();
    // A client that knew the old topic may go on with what it knew of it.
    let cluster = kafka::connect(&Config::to(world.kafka.bootstrap())).unwrap();
    let config = PublishConfig::default();
    let publisher = Publisher::new(&cluster, System::shared(), collection.clone(), config);
    let mut model = Model::new(collection);
    let points = workload::points(&model, random, prefix, points);
    world::publish(&wait(publisher).unwrap(), &mut model, points);
    let after = topic::ends(&cluster, collection);
    assert!(
        before.iter().zip(&after).all(|(old, new)| old < new),
        "{before:?} {after:?}"
    );
    model
}

/// Waits until an indexer holds what the topic says, and nothing else.
#[track_caller]
fn becomes(indexer: &Role, model: &Model) {
    let wanted = model.digest();
    let collection = &model.collection;
    eventually(DEADLINE, "the shards to be what the new topic says", || {
        let shards = state::statuses(indexer.settings.grpc, collection).ok()?;
        let state = state::sum(&shards, collection)?;
        (state.digest == wanted).then(|| model.assert_is(&state, now_ms()))
    });
}

#[test]
fn a_topic_made_anew_is_noticed_whether_its_indexer_was_away_or_not() {
    let world = World::new("made-anew");
    let store = folder::fresh("made-anew-store");
    let collection = world.collection(COLLECTION, DIM, PARTITIONS);
    let mut random = Random::from_environment("made-anew");
    let mut model = Model::new(&collection);
    let old = workload::points(&model, &mut random, "old", OLD_POINTS);
    world::publish(&world.publisher(&collection), &mut model, old);
    let settings = world
        .indexer("indexer")
        .small_engine()
        .with("INDEXER__SNAPSHOT__URL", store.display());
    let indexer = settings.start();
    let query = world.query("query").start();
    model.assert_is(&world.settled(&indexer, &collection), now_ms());
    let address = query.settings.grpc.to_string();
    child::succeed(
        &["snapshot", "create", COLLECTION, "--query", &address],
        &[],
    );

    // While the indexer is away.
    indexer.child.kill();
    let model = make_anew(&world, &collection, &mut random, "new", NEW_POINTS);
    let indexer = settings.start();
    becomes(&indexer, &model);
    assert_eq!(indexer.said(SET_ASIDE), 2);
    // The snapshot is of the old topic.
    let useless = "newest snapshot is of no use, the shard is read from its topic";
    assert_eq!(indexer.said(useless), 2);
    assert_eq!(indexer.said("shard restored from a snapshot"), 0);

    // Beside an indexer that runs.
    let model = make_anew(&world, &collection, &mut random, "newer", 2 * NEW_POINTS);
    becomes(&indexer, &model);
    let (id, (_, point)) = model.points().iter().next().unwrap();
    let client = client::Query::to(query.settings.grpc, query.settings.http);
    eventually(DEADLINE, "the query node to find the new points", || {
        let ask = client::search(COLLECTION, point.vector.as_slice(), 1);
        let answer = client.search(ask).ok()?;
        (client::ids(&answer.hits) == [id.as_str()]).then_some(())
    });
    // And a shard that is what its topic says stays as it is.
    let asides = indexer.said(SET_ASIDE);
    indexer.child.terminate();
    let indexer = settings.start();
    model.assert_is(&world.settled(&indexer, &collection), now_ms());
    assert_eq!(
        indexer.said(SET_ASIDE),
        0,
        "set aside {asides} times before"
    );
}
