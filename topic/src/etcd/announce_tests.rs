//! Tests of the copy in etcd, against one in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use shoal_runtime::{
    clock::{Manual, System},
    eventually,
    tasks::Tasks,
};
use shoal_schemas::{Collection, Metric, Offset};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Announcer, Behind, Brought, Mirror, bring_definitions};
use crate::{
    collections,
    control::ControlLog,
    etcd::{Client, READ_TO_KEY, fake::Fake},
    memory::MemoryLog,
};

const DEADLINE: Duration = Duration::from_secs(20);

fn mirror(read_to: u64, definitions: &[(&str, &str)]) -> Mirror {
    let all = definitions.iter();
    let all = all.map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
    Mirror {
        read_to: Offset(read_to),
        definitions: all.collect(),
        ..Mirror::default()
    }
}

/// A node with Kafka in memory.
struct World {
    log: MemoryLog,
    clock: Arc<Manual>,
    announcer: Announcer,
    fake: Fake,
    client: Client,
    tasks: Tasks,
    _etcd: JoinSet<()>,
}

impl World {
    async fn start() -> Self {
        let log = MemoryLog::new("memory", System::shared());
        let cluster = log.cluster();
        ControlLog::ensure(&cluster, None).unwrap();
        let (tasks, clock) = (Tasks::new(CancellationToken::new()), Manual::at(1_000_000));
        let control = ControlLog::spawn(&cluster, &tasks, clock.clone()).unwrap();
        let dim = 3.try_into().unwrap();
        let docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 1);
        let made = collections::create(&cluster, &control, docs);
        made.await.unwrap();
        let mut etcd = JoinSet::new();
        let (fake, config) = Fake::start(&mut etcd);
        let client = Client::connect(&config).unwrap();
        let announcer = Announcer {
            node: "a".to_owned(),
            config,
            control,
            cluster,
        };
        Self {
            log,
            clock,
            announcer,
            fake,
            client,
            tasks,
            _etcd: etcd,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}

#[tokio::test]
async fn a_node_that_has_read_less_neither_replaces_nor_removes_definitions() {
    let world = World::start().await;
    let (client, fake) = (&world.client, &world.fake);
    let newer = mirror(110, &[("collection/a", "1"), ("collection/b", "1")]);
    let brought = bring_definitions(client, &mut Mirror::default(), &newer).await;
    assert_eq!(brought.unwrap(), Brought::Whole);
    assert_eq!(fake.text(READ_TO_KEY).as_deref(), Some("110"));
    // It has read what stands in etcd, and knows neither of `b` nor of the newer `a`.
    let older = mirror(100, &[("collection/a", "0"), ("collection/gone", "0")]);
    let mut written = newer.clone();
    let brought = bring_definitions(client, &mut written, &older).await;
    assert_eq!(brought.unwrap(), Brought::Behind);
    for (key, value) in [("a", Some("1")), ("b", Some("1")), ("gone", None)] {
        let key = format!("collection/{key}");
        assert_eq!(fake.text(&key).as_deref(), value, "{key}");
    }
    // Once it has read as far, it does what the log says.
    let level = mirror(111, &[("collection/a", "2")]);
    let brought = bring_definitions(client, &mut written, &level).await;
    assert_eq!(brought.unwrap(), Brought::Whole);
    assert_eq!(fake.text("collection/a").as_deref(), Some("2"));
    assert_eq!(fake.text("collection/b"), None);
    assert_eq!(fake.text(READ_TO_KEY).as_deref(), Some("111"));
}

#[tokio::test]
async fn definitions_of_a_control_topic_that_was_made_anew_are_written_while_kafka_says_so() {
    let world = World::start().await;
    let (client, node, control) = (&world.client, &world.announcer, &world.announcer.control);
    let far = mirror(1000, &[("collection/old", "1")]);
    let brought = bring_definitions(client, &mut Mirror::default(), &far).await;
    assert_eq!(brought.unwrap(), Brought::Whole);
    let first = node.look_behind(client, None).await.unwrap();
    let first = first.expect("the log ends before that");
    assert_eq!(first.there, Offset(1000));
    // Time alone says nothing: a node that is cut off hears no end.
    world.log.set_down(true);
    let heard_at = control.snapshot().caught_up_at.unwrap();
    let before = Behind {
        since: heard_at,
        ..first
    };
    world.clock.advance(Duration::from_secs(60));
    let still = node.look_behind(client, Some(before)).await.unwrap();
    if control.snapshot().caught_up_at == Some(heard_at) {
        assert_eq!(still, Some(before));
        assert_eq!(world.fake.text(READ_TO_KEY).as_deref(), Some("1000"));
    }
    world.log.set_down(false);
    eventually(DEADLINE, "Kafka to be heard of again", || {
        (control.snapshot().caught_up_at > Some(heard_at)).then_some(())
    });
    assert_eq!(node.look_behind(client, still).await.unwrap(), None);
    let here = control.snapshot().next_offset.to_string();
    assert_eq!(world.fake.text(READ_TO_KEY), Some(here));
}

#[tokio::test]
async fn the_lease_is_kept_while_the_copy_takes_long() {
    let world = World::start().await;
    world.fake.hold(true);
    let (mut open, mut is_silent) = (None, false);
    let keeping = async {
        // A call that is not answered in time begins it anew.
        while (world.announcer.keep(&mut open, &mut is_silent).await).is_err() {}
    };
    let wait = async {
        let fake = &world.fake;
        fake.until("the lease was not kept", |state| state.kept > 0)
            .await;
        fake.hold(false);
        fake.until("the copy did not come to its end", |state| {
            state.text("collection/docs").is_some()
        })
        .await;
    };
    tokio::select! {
        () = keeping => panic!("the copy has no reason to end"),
        () = wait => {}
    }
}

#[tokio::test]
async fn a_watch_ends_where_no_leader_is_known() {
    let world = World::start().await;
    let _watch = world.client.watch(1).await.unwrap();
    let told = "the member is not asked for a leader";
    let has_leader = |state: &crate::etcd::fake::State| state.watches_with_leader == 1;
    world.fake.until(told, has_leader).await;
}
