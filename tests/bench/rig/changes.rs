//! `changes`: searches at a fixed rate through a query node while who serves what changes.
//!
//! 500 searches a second whatever comes back, each of which wants every one of four shards and has the query node's own
//! deadline; one that is not answered has failed. The changes, one after the other, each as long as it takes and two
//! seconds more:
//! - *replaced*: another indexer takes the shards over by its static list, without any replica, and the old one is ended;
//! - *restarted*: an owner is ended in good order and started again, beside a replica;
//! - *killed*: the replica is killed (SIGKILL) and started again;
//! - *joined*: one more indexer joins the group, which gives it shards of the others, without any replica;
//! - *flipped*: searches go by a name, which is set to another collection that holds the same, and back, ten times.
//!
//! An answer has failed, too, if another collection gave it than one that the name has stood for, if it has fewer hits than
//! there are, or a hit that is no point. New indexers have empty disks, so they read everything from Kafka first. The reference is the time in which nothing
//! changes. Everything shares the machine.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use shoal_runtime::{clock::Stopwatch, tasks::blocking};
use shoal_schemas::{Collection, CollectionName, v1};
use tokio::{
    task::{JoinSet, block_in_place},
    time::interval,
};
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::Arguments,
    client::{Node, Replicas},
    embeddings::{Embeddings, K, collection},
    figures::{Latencies, Repeats, millis, round, say},
    place::Place,
    role::Role,
};

const SEARCHES_PER_SECOND: u32 = 500;
const PARTITIONS: u32 = 4;
/// Not counted: connections are made, delays are measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long is searched on when a change is over.
const AFTER: Duration = Duration::from_secs(2);
/// How often the name is set to the other collection or back; even, so that it ends where it began.
const FLIPS: usize = 10;
const BETWEEN_FLIPS: Duration = Duration::from_millis(500);
const CHANGES: [&str; 6] = [
    "none",
    "replaced",
    "restarted",
    "killed",
    "joined",
    "flipped",
];
const GROUP: (&str, &str) = ("SHOAL_INDEXER__OWNERSHIP__KIND", "group");

/// What one kind of change came to, over all repeats.
#[derive(Default)]
struct Part {
    p50: Repeats,
    p99: Repeats,
    seconds: Repeats,
    failed: u64,
    asked: u64,
    /// When the last search failed, milliseconds after the change began.
    last_failed_ms: f64,
}

impl Part {
    fn figures(&self) -> Value {
        json!({
            "p50_ms": round(self.p50.median()),
            "p99_ms": round(self.p99.median()),
            "p99_spread": self.p99.spread(),
            "seconds": round(self.seconds.median()),
            "failed": self.failed,
            "last_failed_ms": round(self.last_failed_ms),
            "asked": self.asked,
        })
    }
}

/// What searches of one change came to.
#[derive(Default)]
struct Found {
    latencies: Latencies,
    /// Answers by the collection that gave them.
    by: BTreeMap<String, u64>,
    /// When each that failed was due.
    failed: Vec<Duration>,
}

/// What is searched.
#[derive(Clone)]
struct Asked {
    name: CollectionName,
    /// What the name may stand for.
    stands_for: Vec<CollectionName>,
}

struct Bench<'a> {
    arguments: &'a Arguments,
    place: &'a Place,
    collection: &'a Collection,
    embeddings: Arc<Embeddings>,
    query: Role,
    /// How many indexers there were: each has a name of its own.
    started: usize,
    parts: [Part; CHANGES.len()],
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Arc::new(Embeddings::load(arguments)?);
    let (repeats, time) = (arguments.repeats_or(3), arguments.time_or(10));
    let rows = embeddings.points.len();
    let place = Place::start().await?;
    let collection = Collection {
        partitions: PARTITIONS,
        ..collection("changes")?
    };
    place.create(&collection).await?;
    place.publish(&collection, &embeddings.points).await?;
    let mut bench = Bench {
        arguments,
        place: &place,
        collection: &collection,
        embeddings,
        query: block_in_place(|| Role::query(arguments, &place))?,
        started: 0,
        parts: Default::default(),
    };
    let mut owner = bench.start(&[])?;
    bench.is_served(&[&owner], true).await?;
    bench.searches(WARM_UP).await?;
    for repeat in 0..repeats {
        let none = bench.searches(time).await?;
        bench.note(0, repeat, none, time)?;
        owner = bench.replaced(repeat, owner).await?;
    }
    owner = bench.beside_a_replica(repeats, owner).await?;
    let group = bench.joined(repeats, owner).await?;
    bench.flipped(repeats).await?;
    drop(group);

    let [none, changes @ ..] = &bench.parts;
    say(format!(
        "\nmedian (lowest - highest) of {repeats} changes each, {SEARCHES_PER_SECOND} searches/s"
    ))?;
    for (name, part) in CHANGES.iter().zip(&bench.parts) {
        say(format!(
            "  {name:10} p50 {}  p99 {}  takes {}  failed {} of {}",
            part.p50.text("ms"),
            part.p99.text("ms"),
            part.seconds.text("s"),
            part.failed,
            part.asked
        ))?;
    }
    let failed: u64 = changes.iter().map(|part| part.failed).sum();
    let slowest = changes.iter().map(|part| part.p99.median());
    let ratio = slowest.fold(0.0, f64::max) / none.p99.median();
    let ours = CHANGES.iter().zip(&bench.parts).skip(1);
    let ours = ours.map(|(name, part)| ((*name).to_owned(), part.figures()));
    Ok(json!({
        "name": "changes",
        "ours": Value::Object(ours.collect()),
        "reference": none.figures(),
        "ratio": round(ratio),
        "failed": failed,
        "settings": {
            "rows": rows,
            "searches_per_second": SEARCHES_PER_SECOND,
            "seconds": time.as_secs(),
            "partitions": PARTITIONS,
        },
        "repeats": repeats,
    }))
}

impl Bench<'_> {
    /// Starts an indexer with an empty disk; with these settings more than a static list of all shards.
    fn start(&mut self, more: &[(&str, &str)]) -> anyhow::Result<Role> {
        self.started += 1;
        self.start_as(&format!("indexer-{}", self.started), more)
    }

    fn start_as(&self, name: &str, more: &[(&str, &str)]) -> anyhow::Result<Role> {
        let folder = self.place.folder().join(name);
        let rows = self.embeddings.points.len();
        let named = [&[("SHOAL_INDEXER__NODE", name)], more].concat();
        block_in_place(|| Role::named(self.arguments, self.place, &folder, rows, &named))
    }

    /// Waits until the query node knows that these serve every shard: all of them each, or all between them.
    async fn is_served(&self, roles: &[&Role], each: bool) -> anyhow::Result<()> {
        let addresses: Vec<String> = roles.iter().map(|one| one.grpc.to_string()).collect();
        let mut replicas = Replicas::connect(self.query.grpc, self.collection).await?;
        if each {
            return replicas.wait(&addresses).await;
        }
        let serves = |shard: &v1::ShardOwner, address: &String| {
            let mut ready = shard.replicas.iter().filter(|one| one.ready);
            ready.any(|one| one.address == *address)
        };
        let is_shared = |shards: &[v1::ShardOwner]| {
            let has_one = |shard| addresses.iter().any(|address| serves(shard, address));
            let is_used = |address| shards.iter().any(|shard| serves(shard, address));
            shards.iter().all(has_one) && addresses.iter().all(is_used)
        };
        replicas.wait_until(is_shared).await
    }

    /// Another indexer takes every shard over by its list, and the old one ends.
    async fn replaced(&mut self, repeat: usize, old: Role) -> anyhow::Result<Role> {
        let searches = self.begin();
        let watch = Stopwatch::start();
        let new = self.start(&[])?;
        let address = new.grpc.to_string();
        let mut owners = Replicas::connect(self.query.grpc, self.collection).await?;
        owners
            .wait_until(|shards| shards.iter().all(|shard| shard.address == address))
            .await?;
        blocking(move || old.stop()).await?;
        let took = watch.elapsed();
        let found = searches.end().await?;
        self.note(1, repeat, found, took)?;
        Ok(new)
    }

    /// Beside a replica the owner is restarted, and the replica is killed.
    async fn beside_a_replica(&mut self, repeats: usize, owner: Role) -> anyhow::Result<Role> {
        const SET: (&str, &str) = ("SHOAL_INDEXER__REPLICA_SET", "b");
        let mut owner = owner;
        let mut replica = self.start_as("replica", &[SET])?;
        self.is_served(&[&owner, &replica], true).await?;
        let name = format!("indexer-{}", self.started);
        for repeat in 0..repeats {
            self.searches(WARM_UP).await?;
            let searches = self.begin();
            let watch = Stopwatch::start();
            blocking(move || owner.stop()).await?;
            owner = self.start_as(&name, &[])?;
            self.is_served(&[&owner, &replica], true).await?;
            let took = watch.elapsed();
            let found = searches.end().await?;
            self.note(2, repeat, found, took)?;

            self.searches(WARM_UP).await?;
            let searches = self.begin();
            let watch = Stopwatch::start();
            blocking(move || replica.kill()).await?;
            replica = self.start_as("replica", &[SET])?;
            self.is_served(&[&owner, &replica], true).await?;
            let took = watch.elapsed();
            let found = searches.end().await?;
            self.note(3, repeat, found, took)?;
        }
        blocking(move || replica.stop()).await?;
        Ok(owner)
    }

    /// Indexers join a group one after the other.
    async fn joined(&mut self, repeats: usize, owner: Role) -> anyhow::Result<Vec<Role>> {
        let mut group = vec![self.start(&[GROUP])?];
        self.is_served(&group.iter().collect::<Vec<_>>(), true)
            .await?;
        blocking(move || owner.stop()).await?;
        // A group of more than there are shards gives the last ones none.
        let most = usize::try_from(PARTITIONS)? - 1;
        for repeat in 0..repeats.min(most) {
            self.searches(WARM_UP).await?;
            let searches = self.begin();
            let watch = Stopwatch::start();
            group.push(self.start(&[GROUP])?);
            self.is_served(&group.iter().collect::<Vec<_>>(), false)
                .await?;
            let took = watch.elapsed();
            let found = searches.end().await?;
            self.note(4, repeat, found, took)?;
        }
        Ok(group)
    }

    /// A name is set to another collection of the same records, and back, by whoever serves now.
    async fn flipped(&mut self, repeats: usize) -> anyhow::Result<()> {
        let own = self.collection.name.clone();
        let other = Collection {
            name: "changes-other".parse()?,
            reads: Some(own.clone()),
            ..self.collection.clone()
        };
        self.place.create(&other).await?;
        let mut owners = Replicas::connect(self.query.grpc, &other).await?;
        owners.wait_for_all().await?;
        let asked = Asked {
            name: "changing".parse()?,
            stands_for: vec![own.clone(), other.name.clone()],
        };
        self.place.set_alias(&asked.name, &own).await?;
        let mut node = Node::by_name(self.query.grpc, &asked.name).await?;
        let vector = self.embeddings.queries.first();
        let vector = vector.context("there are queries")?;
        node.wait(&mut self.query, vector).await?;
        for repeat in 0..repeats {
            self.begin_with(asked.clone()).end_after(WARM_UP).await?;
            let searches = self.begin_with(asked.clone());
            let watch = Stopwatch::start();
            let mut ticks = interval(BETWEEN_FLIPS);
            for to in [&other.name, &own].into_iter().cycle().take(FLIPS) {
                ticks.tick().await;
                self.place.set_alias(&asked.name, to).await?;
            }
            let took = watch.elapsed();
            let found = searches.end().await?;
            say(format!("repeat {repeat}: answers by {:?}", found.by))?;
            let answered = |name: &CollectionName| found.by.contains_key(name.as_str());
            ensure!(
                asked.stands_for.iter().all(answered),
                "the name has not stood for both: {:?}",
                found.by
            );
            self.note(5, repeat, found, took)?;
        }
        Ok(())
    }

    fn note(
        &mut self,
        change: usize,
        repeat: usize,
        found: Found,
        took: Duration,
    ) -> anyhow::Result<()> {
        let (name, part) = (CHANGES.get(change), self.parts.get_mut(change));
        let (name, part) = name.zip(part).context("there is such a change")?;
        let (p50, p99) = (found.latencies.at(0.5), found.latencies.at(0.99));
        let failed = found.failed.len() as u64;
        let asked = found.latencies.len() as u64 + failed;
        let seconds = took.as_secs_f64();
        say(format!(
            "repeat {repeat}: {name}: p50 {p50:.2} ms, p99 {p99:.2} ms, {seconds:.1} s, {failed} failed of {asked}"
        ))?;
        part.p50.push(p50);
        part.p99.push(p99);
        part.seconds.push(seconds);
        part.failed += failed;
        part.asked += asked;
        let last = found.failed.iter().max().copied().unwrap_or_default();
        part.last_failed_ms = part.last_failed_ms.max(millis(last));
        Ok(())
    }

    /// Searches that go on until they are ended.
    fn begin(&self) -> Searches {
        let name = self.collection.name.clone();
        let stands_for = vec![name.clone()];
        self.begin_with(Asked { name, stands_for })
    }

    fn begin_with(&self, asked: Asked) -> Searches {
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(search(
            self.query.grpc,
            asked,
            self.embeddings.clone(),
            stop.clone(),
        ));
        Searches { stop, task }
    }

    async fn searches(&self, time: Duration) -> anyhow::Result<Found> {
        let searches = self.begin();
        searches.end_after(time).await
    }
}

struct Searches {
    stop: CancellationToken,
    task: JoinSet<anyhow::Result<Found>>,
}

impl Searches {
    /// Goes on a little longer.
    async fn end(self) -> anyhow::Result<Found> {
        self.end_after(AFTER).await
    }

    async fn end_after(mut self, time: Duration) -> anyhow::Result<Found> {
        // Nobody else ends them, but an error of theirs.
        let ended = tokio::time::timeout(time, self.task.join_next()).await;
        self.stop.cancel();
        let ended = match ended {
            Ok(ended) => ended,
            Err(_) => self.task.join_next().await,
        };
        ended.context("it was started")??
    }
}

/// Asks at fixed times whatever comes back; a latency begins when its search is due.
async fn search(
    query: std::net::SocketAddr,
    asked: Asked,
    embeddings: Arc<Embeddings>,
    stop: CancellationToken,
) -> anyhow::Result<Found> {
    let node = Node::by_name(query, &asked.name).await?;
    let watch = Stopwatch::start();
    let period = Duration::from_secs(1) / SEARCHES_PER_SECOND;
    let mut ticks = interval(period);
    let mut calls: JoinSet<(Duration, anyhow::Result<(Duration, v1::SearchResponse)>)> =
        JoinSet::new();
    for (number, vector) in (0u32..).zip(embeddings.queries.iter().cycle()) {
        if stop.is_cancelled() {
            break;
        }
        ticks.tick().await;
        let due = period * number;
        let (mut node, vector) = (node.clone(), vector.clone());
        calls.spawn(async move {
            let told = node.answer(&vector).await;
            let took = watch.elapsed().saturating_sub(due);
            (due, told.map(|answer| (took, answer)))
        });
    }
    let mut found = Found::default();
    while let Some(done) = calls.join_next().await {
        let (due, told) = done?;
        let checked =
            told.and_then(|(took, answer)| Ok((took, checked(&asked, &embeddings, answer)?)));
        match checked {
            Ok((latency, by)) => {
                found.latencies.push(latency);
                *found.by.entry(by).or_default() += 1;
            }
            Err(why) => {
                if found.failed.is_empty() {
                    say(format!("  a search failed: {why:#}"))?;
                }
                found.failed.push(due);
            }
        }
    }
    Ok(found)
}

/// Which collection gave an answer, if it is one that can be: from one that was asked, with as many points as
/// there are to find.
fn checked(
    asked: &Asked,
    embeddings: &Embeddings,
    answer: v1::SearchResponse,
) -> anyhow::Result<String> {
    let coverage = answer.coverage.context("it says not who answered")?;
    let by = coverage.collection;
    ensure!(
        asked.stands_for.iter().any(|name| name.as_str() == by),
        "`{by}` answered for `{}`",
        asked.name
    );
    let wanted = K.min(embeddings.points.len());
    let found = answer.hits.len();
    ensure!(found == wanted, "`{by}` found {found} of {wanted} points");
    for hit in &answer.hits {
        ensure!(
            embeddings.row(&hit.id).is_some(),
            "`{by}` found `{}`, which is no point",
            hit.id
        );
    }
    Ok(by)
}
