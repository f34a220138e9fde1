//! Tests of what a run does with what an earlier one has left.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use clap::Parser;
use shoal_schemas::{CollectionName, control};
use shoal_topic::{
    collections::{self, Taken},
    control::ControlState,
};

use super::{
    Reindex, Resume,
    job::{
        Job, Noted, Wanted,
        tests::{docs, link, next},
    },
    steps::Steps,
};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    reindex: Reindex,
}

fn reindex(line: &str) -> Reindex {
    let line = Line::try_parse_from(["reindex"].into_iter().chain(line.split_whitespace()));
    line.unwrap().reindex
}

fn name(text: &str) -> CollectionName {
    text.parse().unwrap()
}

#[test]
fn a_job_whose_old_collection_is_gone_is_finished_and_one_of_another_wish_is_taken_back() {
    let found = control::Reindex {
        run: "killed".into(),
        from: name("docs"),
        to: name("docs-g2"),
        made: true,
    };
    let new = next("docs-g2");
    let mut state = ControlState::default();
    for one in [docs(), new] {
        state.collections.insert(one.name.clone(), one);
    }
    let same = [
        "docs",
        "docs --partitions 3",
        "docs --partitions 3 --as docs-g2",
    ];
    for line in same {
        let resumed = reindex(line).resume(&state, &found);
        assert_eq!(resumed, Resume::GoOn, "{line}");
    }
    let others = ["docs --partitions 5", "docs --partitions 3 --as docs-x"];
    for line in others {
        let resumed = reindex(line).resume(&state, &found);
        assert_eq!(resumed, Resume::TakeBack, "{line}");
    }
    state.aliases.insert(name("docs"), name("docs-g2"));
    state.collections.remove(&name("docs"));
    for line in same.into_iter().chain(["docs --anew", "docs --to docs-g2"]) {
        let resumed = reindex(line).resume(&state, &found);
        assert_eq!(resumed, Resume::Finish { and_begin: false }, "{line}");
    }
    for line in others.into_iter().chain(["docs --to docs-x"]) {
        let resumed = reindex(line).resume(&state, &found);
        assert_eq!(resumed, Resume::Finish { and_begin: true }, "{line}");
    }
}

#[tokio::test]
async fn a_run_that_was_killed_before_its_last_step_is_finished_by_the_same_command() {
    let link = link().await;
    let wanted = Wanted {
        from: docs().name,
        to: next("docs-g2"),
        made: true,
    };
    let begun = Job::begin(&link, "killed", &docs().name, wanted).await;
    assert!(matches!(begun.unwrap(), Noted::Ours(_)));
    let (cluster, control) = (&link.cluster, &link.control);
    collections::create(cluster, control, next("docs-g2"))
        .await
        .unwrap();
    collections::set_alias(control, &docs().name, &name("docs-g2"), Taken::Shadow)
        .await
        .unwrap();
    collections::drop(cluster, control, &docs().name, false)
        .await
        .unwrap();
    let again = reindex("docs --partitions 3 --delete-topic");
    let begun = again.begin(&link, "again").await.unwrap();
    assert!(begun.is_none(), "there is nothing left to do");
    let state = control.snapshot();
    assert!(state.reindexes.is_empty());
    assert_eq!(state.aliases[&docs().name], name("docs-g2"));
    let topics = cluster.admin.list_topics().unwrap();
    assert!(!topics.contains(&docs().topic()), "{topics:?}");
    assert!(topics.contains(&next("docs-g2").topic()), "{topics:?}");
    link.close().await;
}

#[tokio::test]
async fn what_was_made_after_another_run_had_taken_over_does_not_stay() {
    let link = link().await;
    let begin = async |run: &str, to: &str| {
        let wanted = Wanted {
            from: docs().name,
            to: next(to),
            made: true,
        };
        let begun = Job::begin(&link, run, &docs().name, wanted).await;
        begun.unwrap()
    };
    let Noted::Ours(first) = begin("first", "docs-g2").await else {
        panic!("nobody else is there");
    };
    assert!(matches!(
        begin("second", "docs-g3").await,
        Noted::InPlaceOf(_)
    ));
    let (cluster, control) = (&link.cluster, &link.control);
    for name in ["docs-g2", "docs-g3"] {
        let made = collections::create(cluster, control, next(name)).await;
        made.unwrap();
    }
    let wish = reindex("docs --partitions 3");
    let steps = Steps::new(&wish, &link, &first);
    steps.unmake_late().await.unwrap();
    let state = control.snapshot();
    let left: Vec<_> = state.collections.keys().map(|name| name.as_str()).collect();
    assert_eq!(left, ["docs", "docs-g3"]);
    let topics = cluster.admin.list_topics().unwrap();
    assert!(!topics.contains(&next("docs-g2").topic()), "{topics:?}");
    link.close().await;
}
