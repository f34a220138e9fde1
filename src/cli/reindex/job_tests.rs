//! Tests of runs that meet, on the log in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use shoal_runtime::{clock::System, tasks::Tasks};
use shoal_schemas::{Collection, Metric};
use shoal_topic::{
    collections::{self, Taken},
    control::ControlLog,
    memory::MemoryLog,
};
use tokio_util::sync::CancellationToken;

use super::{Job, Noted, Wanted};
use crate::cli::{
    kafka_link::KafkaLink,
    reindex::{Ending, Ends},
};

/// A link to a log in memory with `docs` in it.
pub(in crate::cli::reindex) async fn link() -> KafkaLink {
    let log = MemoryLog::new("memory", System::shared());
    let (cluster, clock) = (log.cluster(), System::shared());
    ControlLog::ensure(&cluster, None).unwrap();
    let tasks = Tasks::new(CancellationToken::new());
    let control = ControlLog::spawn(&cluster, &tasks, clock.clone()).unwrap();
    let made = collections::create(&cluster, &control, docs()).await;
    made.unwrap();
    let state = control.snapshot();
    KafkaLink {
        cluster,
        control,
        clock,
        tasks,
        state,
    }
}

pub(in crate::cli::reindex) fn docs() -> Collection {
    let dim = 3.try_into().unwrap();
    let mut docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 2);
    // As it is written down.
    docs.index.quantization = Some(docs.quantization());
    docs
}

/// A generation of `docs` with a topic of its own.
pub(in crate::cli::reindex) fn next(name: &str) -> Collection {
    let mut next = docs();
    next.name = name.parse().unwrap();
    next.partitions = 3;
    next.fed_by = Some(docs().name);
    next
}

async fn begin(link: &KafkaLink, run: &str, to: &str) -> Noted {
    let wanted = Wanted {
        from: docs().name,
        to: next(to),
        made: true,
    };
    Job::begin(link, run, &docs().name, wanted).await.unwrap()
}

fn ours(noted: Noted) -> Job {
    match noted {
        Noted::Ours(job) => *job,
        Noted::InPlaceOf(other) => panic!("in place of {other:?}"),
    }
}

fn is_overtaken(ended: anyhow::Result<()>) -> bool {
    let error = ended.unwrap_err();
    matches!(error.downcast_ref(), Some(Ends(Ending::Overtaken)))
}

#[tokio::test]
async fn of_two_runs_that_begin_at_once_the_later_knows_of_the_other_and_that_one_ends() {
    let link = link().await;
    let first = ours(begin(&link, "first", "docs-g2").await);
    assert!(first.is_ours(&link.control.snapshot()));
    // It had looked before the first one's record was there.
    let Noted::InPlaceOf(other) = begin(&link, "second", "docs-x").await else {
        panic!("the other run is not known of");
    };
    assert_eq!(other, first.entry);
    assert!(is_overtaken(first.fence(&link).await.map(drop)));
    let second = Job::take_over(&link, "second", &docs().name, other).await;
    let second = second.unwrap();
    assert_eq!(second.entry.to, next("docs-g2").name);
    second.fence(&link).await.unwrap();
    // Of the same word, as of two containers that start alike: the place in the log tells them apart.
    let third = Job::take_over(&link, "second", &docs().name, second.entry.clone()).await;
    third.unwrap().fence(&link).await.unwrap();
    assert!(is_overtaken(second.fence(&link).await.map(drop)));
    link.close().await;
}

#[tokio::test]
async fn a_run_that_was_overtaken_takes_nothing_back_and_forgets_nothing() {
    let link = link().await;
    let first = ours(begin(&link, "first", "docs-g2").await);
    let new = next("docs-g2");
    let (cluster, control) = (&link.cluster, &link.control);
    collections::create(cluster, control, new.clone())
        .await
        .unwrap();
    let found = first.entry.clone();
    let second = Job::take_over(&link, "second", &docs().name, found).await;
    let second = second.unwrap();
    assert!(is_overtaken(first.take_back(&link).await));
    assert!(is_overtaken(first.forget(&link).await));
    assert!(is_overtaken(first.finish(&link, true).await));
    let state = second.fence(&link).await.unwrap();
    assert_eq!(state.collections[&new.name], new);
    assert!(state.reindexes.contains_key(&docs().name));
    second.take_back(&link).await.unwrap();
    let state = link.control.snapshot();
    assert!(!state.collections.contains_key(&new.name) && state.reindexes.is_empty());
    let topics = link.cluster.admin.list_topics().unwrap();
    assert!(!topics.contains(&new.topic()), "{topics:?}");
    link.close().await;
}

#[tokio::test]
async fn what_was_decided_before_another_call_moved_the_name_is_not_begun() {
    let link = link().await;
    let new = next("docs-g2");
    let (cluster, control) = (&link.cluster, &link.control);
    collections::create(cluster, control, new.clone())
        .await
        .unwrap();
    let begin = async |to: &str| {
        let wanted = Wanted {
            from: docs().name,
            to: next(to),
            made: true,
        };
        let begun = Job::begin(&link, "late", &docs().name, wanted).await;
        begun.map(drop).unwrap_err().to_string()
    };
    let told = begin("docs-g2").await;
    assert!(told.contains("`docs-g2` was made by another"), "{told}");
    collections::set_alias(control, &docs().name, &new.name, Taken::Shadow)
        .await
        .unwrap();
    let told = begin("docs-g3").await;
    assert!(told.contains("`docs` was moved by another"), "{told}");
    assert!(control.snapshot().reindexes.is_empty());
    link.close().await;
}

#[tokio::test]
async fn a_collection_that_somebody_else_made_under_the_name_is_not_dropped() {
    let link = link().await;
    let job = ours(begin(&link, "killed", "docs-g2").await);
    let mut others = next("docs-g2");
    others.fed_by = None;
    let (cluster, control) = (&link.cluster, &link.control);
    collections::create(cluster, control, others.clone())
        .await
        .unwrap();
    job.take_back(&link).await.unwrap();
    let state = link.control.snapshot();
    assert_eq!(state.collections[&others.name], others);
    assert!(state.reindexes.is_empty());
    let topics = link.cluster.admin.list_topics().unwrap();
    assert!(topics.contains(&others.topic()), "{topics:?}");
    link.close().await;
}
