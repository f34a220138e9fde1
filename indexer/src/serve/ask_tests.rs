//! Tests of what a shard takes and what it refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use shoal_schemas::{Collection, FieldKind, Filter, Metric, v1};
use tonic::Code;

use super::{Asked, check, check_count, check_query, check_scroll};

fn docs() -> Collection {
    let dim = 3.try_into().unwrap();
    let mut docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 2);
    docs.fields = [("year".to_owned(), FieldKind::Integer)].into();
    docs
}

fn query() -> v1::Query {
    v1::Query {
        vector: vec![0.0; 3],
        k: 2,
        ..v1::Query::default()
    }
}

fn on(field: &str) -> Option<v1::Filter> {
    let field = field.to_owned();
    Some(Filter::Exists { field }.to_proto())
}

fn group_by(field: &str, group_size: u32) -> Option<v1::GroupBy> {
    Some(v1::GroupBy {
        field: field.to_owned(),
        group_size,
    })
}

fn after(distance: f32, id: &str) -> Option<v1::After> {
    let id = id.to_owned();
    Some(v1::After { distance, id })
}

#[test]
fn each_fault_of_a_query_is_named() {
    #[rustfmt::skip]
    let cases = [
        (v1::Query { k: 0, ..query() }, "k is 0"),
        (v1::Query { offset: 1, ..query() }, "offset"),
        (v1::Query { filter: on("colour"), ..query() }, "`colour` is not declared"),
        (v1::Query { filter: Some(v1::Filter::default()), ..query() }, "no condition"),
        (v1::Query { max_distance: Some(f32::NAN), ..query() }, "max_distance"),
        (v1::Query { group_by: group_by("colour", 1), ..query() }, "`colour` is not declared"),
        (v1::Query { group_by: group_by("year", 0), ..query() }, "group_size is 0"),
        (v1::Query { group_by: group_by("year", 9_000), ..query() }, "k times group_size is 18000"),
        (v1::Query { after: after(f32::NAN, "a"), ..query() }, "after"),
        (v1::Query { after: after(0.0, ""), ..query() }, "id"),
        (
            v1::Query { after: after(0.0, "a"), group_by: group_by("year", 1), ..query() },
            "group_by",
        ),
        (v1::Query { tenant: "a".to_owned(), ..query() }, "route_by_key_prefix"),
    ];
    for (wrong, text) in cases {
        let refused = check(&[query(), wrong], &docs()).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument, "{}", refused.message);
        assert!(
            refused.message.starts_with("query 1: "),
            "{}",
            refused.message
        );
        assert!(refused.message.contains(text), "{}", refused.message);
    }
}

#[test]
fn everything_asked_for_is_in_the_ask() {
    let asked = v1::Query {
        filter: on("year"),
        max_distance: Some(2.0),
        include_payload: vec!["year".to_owned()],
        after: after(1.0, "a"),
        explain: true,
        tenant: "acme".to_owned(),
        ..query()
    };
    let routed = Collection {
        route_by_key_prefix: true,
        ..docs()
    };
    let ask = check_query(&asked, &routed).unwrap();
    assert!(ask.filter.is_some() && ask.explain && ask.with_payload);
    assert_eq!(ask.max_distance, Some(2.0));
    assert_eq!(ask.after.unwrap().id, "a");
    assert!(ask.tenant.unwrap().holds("acme/1"));
    assert!(ask.selection.wants("year") && !ask.selection.wants("title"));
    let grouped = v1::Query {
        group_by: group_by("year", 3),
        ..query()
    };
    let group_by = check_query(&grouped, &docs()).unwrap().group_by.unwrap();
    assert_eq!(
        (group_by.kind, group_by.group_size),
        (FieldKind::Integer, 3)
    );
}

#[test]
fn counts_and_scrolls_are_checked_like_searches() {
    assert!(check_count(None, "", &docs()).unwrap().filter.is_none());
    assert!(check_count(on("year").as_ref(), "", &docs()).is_ok());
    let unknown = check_count(on("yaer").as_ref(), "", &docs()).unwrap_err();
    assert_eq!(unknown.code, Code::InvalidArgument);
    let page = v1::ShardScrollRequest {
        limit: 3,
        ..v1::ShardScrollRequest::default()
    };
    assert_eq!(check_scroll(&page, &docs()).unwrap().limit, 3);
    let none = check_scroll(&v1::ShardScrollRequest::default(), &docs()).unwrap_err();
    assert_eq!(none.code, Code::InvalidArgument);
}

fn asked(queries: Vec<v1::Query>, rescore: Vec<u32>) -> Asked {
    Asked::new(v1::SearchShardsRequest {
        queries,
        rescore,
        ..v1::SearchShardsRequest::default()
    })
}

#[test]
fn shards_are_searched_together_only_if_that_is_asked_for_each_query() {
    let together = |together: &[u32]| {
        let request = v1::SearchShardsRequest {
            queries: vec![query(), query()],
            together: together.to_vec(),
            ..v1::SearchShardsRequest::default()
        };
        Asked::new(request).together()
    };
    assert_eq!(together(&[10, 3]), Some(vec![10, 3]));
    for other in [&[][..], &[10], &[10, 0], &[10, 10, 10]] {
        assert_eq!(together(other), None, "{other:?}");
    }
    assert_eq!(
        Asked::new(v1::SearchShardsRequest::default()).together(),
        None
    );
}

#[test]
fn queries_are_checked_once_for_all_shards_of_a_definition() {
    let asked = asked(vec![query()], vec![5]);
    let (one, same) = (Arc::new(docs()), Arc::new(docs()));
    let first = asked.checked(&one).unwrap();
    assert_eq!(first[0].rescore, Some(5));
    let own = self::asked(vec![query(), query()], vec![0]);
    let own = own.checked(&one).unwrap();
    assert!(own.iter().all(|ask| ask.rescore.is_none()));
    assert!(Arc::ptr_eq(&first, &asked.checked(&same).unwrap()));
    let mut another = docs();
    another.dim = 4.try_into().unwrap();
    assert!(asked.checked(&Arc::new(another)).is_err());
    assert!(Arc::ptr_eq(&first, &asked.checked(&one).unwrap()));
}
