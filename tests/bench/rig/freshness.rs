//! `freshness`: from the moment a record is due to the moment a search shows it, at a steady rate.
//!
//! 500 records a second are published and 50 searches a second asked, both at fixed times whatever
//! comes back. Every fifth record is followed: once the log has acknowledged it, a search carries
//! its token, and the clock stops when that answer is here and holds the record. So a figure
//! includes waiting for a batch, the acknowledgement, the indexer and a whole search. The
//! reference is the broker's own way at the same rate, from a plain producer to a plain consumer,
//! with nothing else going on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use shoal_producer::Publisher;
use shoal_runtime::{clock::Stopwatch, tasks::blocking};
use shoal_schemas::{
    PointId,
    avro::{self, Framing},
};
use shoal_topic::{Cleanup, TopicSpec};
use tokio::{
    task::JoinSet,
    time::{Interval, interval},
};

use crate::{
    arguments::Arguments,
    bare_kafka::{Receiver, Sender},
    client::{Node, Shard, is_folded},
    embeddings::{Embeddings, collection},
    figures::{Latencies, Repeats, round, say},
    place::Place,
    role::{Role, cpu_seconds},
};

const RECORDS_PER_SECOND: u32 = 500;
const SEARCHES_PER_SECOND: u32 = 50;
/// One record in so many is followed into a search.
const FOLLOWED: usize = 5;
/// Not counted: connections open and caches fill.
const WARM_UP: Duration = Duration::from_secs(2);
const REFERENCE_TOPIC: &str = "bench.reference";

/// One run of one side.
#[derive(Default)]
struct Side {
    p50: Repeats,
    p99: Repeats,
    highest: Repeats,
}

impl Side {
    fn push(&mut self, latencies: &Latencies) {
        self.p50.push(latencies.at(0.5));
        self.p99.push(latencies.at(0.99));
        self.highest.push(latencies.at(1.0));
    }

    fn figures(&self) -> Value {
        json!({
            "p50_ms": round(self.p50.median()),
            "p99_ms": round(self.p99.median()),
            "p50_spread": self.p50.spread(),
            "p99_spread": self.p99.spread(),
            "highest_ms": round(self.highest.median()),
        })
    }
}

/// What our run measures.
#[derive(Default)]
struct Ours {
    searchable: Latencies,
    acknowledged: Latencies,
    searches: Latencies,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Arc::new(Embeddings::load(arguments)?);
    let (repeats, time) = (arguments.repeats_or(5), arguments.time_or(20));
    let place = Place::start().await?;
    let collection = collection("freshness")?;
    place.create(&collection).await?;
    place.publish(&collection, &embeddings.points).await?;
    let topic = TopicSpec {
        name: REFERENCE_TOPIC.into(),
        partitions: 1,
        replication_factor: None,
        cleanup: Cleanup::Compact,
        settings: [].into(),
    };
    place.cluster.admin.create_topic(&topic)?;
    let data = place.folder().join("indexer");
    let (mut indexer, mut query) = tokio::task::block_in_place(|| {
        anyhow::Ok((
            Role::indexer(arguments, &place, &data)?,
            Role::query(arguments, &place)?,
        ))
    })?;
    let mut shard = Shard::connect(indexer.grpc, &collection).await?;
    shard
        .wait(&mut indexer, embeddings.points.len(), is_folded)
        .await?;
    let mut node = Node::connect(query.grpc, &collection).await?;
    let probe = embeddings.queries.first().cloned().unwrap_or_default();
    node.wait(&mut query, &probe).await?;
    let publisher = place.publisher(&collection).await?;

    let (mut ours, mut reference) = (Side::default(), Side::default());
    let (mut acknowledged, mut searches) = (Side::default(), Side::default());
    for repeat in 0..repeats {
        let found = {
            let watch = Stopwatch::start();
            let before = (
                indexer.cpu_seconds()?,
                query.cpu_seconds()?,
                cpu_seconds(place.broker.pid())?,
            );
            let found = ours_once(repeat, &embeddings, &publisher, &node, time).await?;
            let share = |now: f64, before: f64| 100.0 * (now - before) / watch.seconds();
            say(format!(
                "repeat {repeat}: Shoal       p50 {:6.2} ms  p99 {:6.2} ms  (acknowledged {:.2} / {:.2} ms; searches beside \
                 {:.2} / {:.2} ms; processor: indexer {:.0} %, query {:.0} %, broker {:.0} %)",
                found.searchable.at(0.5),
                found.searchable.at(0.99),
                found.acknowledged.at(0.5),
                found.acknowledged.at(0.99),
                found.searches.at(0.5),
                found.searches.at(0.99),
                share(indexer.cpu_seconds()?, before.0),
                share(query.cpu_seconds()?, before.1),
                share(cpu_seconds(place.broker.pid())?, before.2),
            ))?;
            found
        };
        ours.push(&found.searchable);
        acknowledged.push(&found.acknowledged);
        searches.push(&found.searches);
        let bootstrap = place.broker.bootstrap();
        let plain = reference_once(&embeddings, &bootstrap, time).await?;
        say(format!(
            "repeat {repeat}: Kafka alone p50 {:6.2} ms  p99 {:6.2} ms",
            plain.at(0.5),
            plain.at(0.99)
        ))?;
        reference.push(&plain);
    }
    blocking(move || indexer.stop()).await?;
    let ratio = ours.p99.median() / reference.p99.median();
    let bound = 3.0 * reference.p99.median() + 10.0;
    say(format!(
        "\nmilliseconds, less is better; median (lowest - highest) of {repeats} runs"
    ))?;
    say(format!(
        "  publish to searchable   p50 {}  p99 {}",
        ours.p50.text(""),
        ours.p99.text("")
    ))?;
    say(format!(
        "  produce to consume      p50 {}  p99 {}",
        reference.p50.text(""),
        reference.p99.text("")
    ))?;
    say(format!(
        "  p99 x {ratio:.2}; 3 x the reference + 10 ms would be {bound:.1} ms"
    ))?;
    Ok(json!({
        "name": "freshness",
        "ours": ours.figures(),
        "reference": reference.figures(),
        "ratio": round(ratio),
        "three_times_reference_plus_10_ms": round(bound),
        "acknowledged": acknowledged.figures(),
        "searches_beside": searches.figures(),
        "settings": {
            "rows": embeddings.points.len(),
            "records_per_second": RECORDS_PER_SECOND,
            "searches_per_second": SEARCHES_PER_SECOND,
            "followed_per_second": RECORDS_PER_SECOND as usize / FOLLOWED,
            "seconds": time.as_secs(),
            "linger_ms": 5,
            "partitions": 1,
        },
        "repeats": repeats,
    }))
}

/// Fires at a fixed rate and catches up after a delay.
fn every(rate: u32) -> Interval {
    interval(Duration::from_secs(1) / rate)
}

async fn ours_once(
    repeat: usize,
    embeddings: &Arc<Embeddings>,
    publisher: &Publisher,
    node: &Node,
    time: Duration,
) -> anyhow::Result<Ours> {
    let watch = Stopwatch::start();
    let until = WARM_UP + time;
    let searches = search_beside(embeddings.clone(), node.clone(), watch, until);
    let published = async {
        let mut followed = JoinSet::new();
        let mut unfollowed = JoinSet::new();
        let mut ticks = every(RECORDS_PER_SECOND);
        for (number, (_, point)) in embeddings.points.iter().cycle().enumerate() {
            ticks.tick().await;
            let due = watch
                .elapsed()
                .min(Duration::from_secs(1) / RECORDS_PER_SECOND * u32::try_from(number)?);
            if due >= until {
                break;
            }
            let id = PointId::new(&format!("fresh-{repeat}-{number}"))?;
            let delivery = publisher.publish(&id, point).await?;
            if number % FOLLOWED != 0 {
                unfollowed.spawn(delivery);
                while let Some(done) = unfollowed.try_join_next() {
                    done??;
                }
                continue;
            }
            let (mut node, vector) = (node.clone(), point.vector.clone());
            followed.spawn(async move {
                let token = delivery.await?.to_proto();
                let acknowledged = watch.elapsed();
                let hits = node.search(vector.as_slice(), Some(token)).await?;
                let shown = watch.elapsed();
                ensure!(
                    hits.iter().any(|hit| hit.id == id.as_str()),
                    "a search that carried the token of `{id}` did not show it"
                );
                Ok((due, acknowledged - due, shown - due))
            });
        }
        let (mut searchable, mut acknowledged) = (Latencies::default(), Latencies::default());
        while let Some(done) = followed.join_next().await {
            let (due, to_acknowledged, to_shown) = done??;
            if due >= WARM_UP {
                acknowledged.push(to_acknowledged);
                searchable.push(to_shown);
            }
        }
        while let Some(done) = unfollowed.join_next().await {
            done??;
        }
        Ok::<_, anyhow::Error>((searchable, acknowledged))
    };
    let (searches, published) = tokio::join!(searches, published);
    let (searchable, acknowledged) = published?;
    Ok(Ours {
        searchable,
        acknowledged,
        searches: searches?,
    })
}

/// Asks held-out queries at a fixed rate until `until`.
async fn search_beside(
    embeddings: Arc<Embeddings>,
    node: Node,
    watch: Stopwatch,
    until: Duration,
) -> anyhow::Result<Latencies> {
    let mut asked = JoinSet::new();
    let mut ticks = every(SEARCHES_PER_SECOND);
    for vector in embeddings.queries.iter().cycle() {
        ticks.tick().await;
        let due = watch.elapsed();
        if due >= until {
            break;
        }
        let (mut node, vector) = (node.clone(), vector.clone());
        asked.spawn(async move {
            node.search(&vector, None).await?;
            anyhow::Ok((due, watch.elapsed() - due))
        });
    }
    let mut latencies = Latencies::default();
    while let Some(done) = asked.join_next().await {
        let (due, latency) = done??;
        if due >= WARM_UP {
            latencies.push(latency);
        }
    }
    Ok(latencies)
}

async fn reference_once(
    embeddings: &Embeddings,
    bootstrap: &str,
    time: Duration,
) -> anyhow::Result<Latencies> {
    let receiver = Receiver::new(bootstrap, REFERENCE_TOPIC)?;
    let sender = Sender::new(bootstrap, REFERENCE_TOPIC)?;
    let until = WARM_UP + time;
    let per_record = Duration::from_secs(1) / RECORDS_PER_SECOND;
    let wanted = (time.as_micros() / per_record.as_micros()) as usize;
    let values = embeddings.points.iter().take(10_000).map(|(_, point)| {
        let mut value = Vec::new();
        avro::encode(point, Framing::SingleObject, &mut value);
        value
    });
    let values: Vec<_> = values.collect();
    let watch = Stopwatch::start();
    let gives_up = Arc::new(AtomicBool::new(false));
    let received = tokio::task::spawn_blocking({
        let gives_up = gives_up.clone();
        move || receiver.read(watch, WARM_UP, wanted, &gives_up)
    });
    let mut ticks = every(RECORDS_PER_SECOND);
    for (number, value) in values.iter().cycle().enumerate() {
        ticks.tick().await;
        let due = watch.elapsed().min(per_record * u32::try_from(number)?);
        if due >= until {
            break;
        }
        sender.send(due, value)?;
    }
    blocking(move || sender.finish()).await?;
    let latencies = tokio::time::timeout(Duration::from_secs(30), received).await;
    gives_up.store(true, Ordering::Release);
    latencies.context("the consumer did not get every record")??
}
