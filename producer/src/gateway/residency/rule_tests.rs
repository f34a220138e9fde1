//! Tests of where a record is placed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use axum::http::{HeaderMap, HeaderValue};
use shoal_schemas::{Collection, CollectionName, Metric, PointId, headers::RESIDENCY};

use super::{Place, Residency, ResidencyError, Rule, Said};
use crate::gateway::residency::FORWARDED_FROM;

/// In `eu`; `us` can be reached, `cn` cannot.
const CONFIG: &str = r#"{
    "region": "eu",
    "regions": {"us": {"gateways": ["us.example:7710"]}, "cn": {}},
    "tags": {"gdpr": "eu", "hipaa": "us"},
    "collections": {"patients": "hipaa"},
    "tenants": {"acme": "us", "zhang": "cn", "home": "gdpr"}
}"#;

fn residency(text: &str) -> Residency {
    Residency::new(serde_json::from_str(text).unwrap())
}

fn collection(name: &str) -> Collection {
    let dim = 3.try_into().unwrap();
    Collection {
        route_by_key_prefix: true,
        ..Collection::new(name.parse().unwrap(), dim, Metric::L2, 2)
    }
}

fn said(tag: Option<&'static str>) -> Said {
    let mut headers = HeaderMap::new();
    if let Some(tag) = tag {
        headers.insert(RESIDENCY, HeaderValue::from_static(tag));
    }
    Said::of(&headers).unwrap()
}

fn rule(name: &str, tag: Option<&'static str>) -> Result<Rule, ResidencyError> {
    let called: CollectionName = name.parse().unwrap();
    residency(CONFIG).rule(&called, &collection(name), &said(tag))
}

/// The region a record is written in, and whether it is another one; `None` without a residency.
fn placed(rule: &Rule, id: &str) -> Result<Option<(String, bool)>, ResidencyError> {
    Ok(match rule.place(&PointId::new(id).unwrap())? {
        Place::Here(region) => region.map(|region| (region.to_string(), false)),
        Place::There(region) => Some((region.to_string(), true)),
    })
}

fn here(region: &str) -> Option<(String, bool)> {
    Some((region.to_owned(), false))
}

fn there(region: &str) -> Option<(String, bool)> {
    Some((region.to_owned(), true))
}

#[test]
fn what_nobody_says_anything_of_is_written_here_without_a_tag() {
    let free = rule("docs", None).unwrap();
    assert_eq!(placed(&free, "a"), Ok(None));
    assert_eq!(placed(&free, "other/a"), Ok(None));
    let called = "docs".parse().unwrap();
    let off = residency("{}").rule(&called, &collection("docs"), &Said::default());
    assert_eq!(placed(&off.unwrap(), "acme/a"), Ok(None));
}

#[test]
fn a_tag_of_the_call_the_collection_or_the_tenant_says_the_region() {
    for (name, tag, id, expected) in [
        ("docs", Some("eu"), "a", here("eu")),
        ("docs", Some("gdpr"), "a", here("eu")),
        ("docs", Some("us"), "a", there("us")),
        ("docs", Some("hipaa"), "a", there("us")),
        ("patients", None, "a", there("us")),
        ("patients", Some("us"), "a", there("us")),
        ("docs", None, "acme/1", there("us")),
        ("docs", None, "home/1", here("eu")),
        // The tenant's goes before the collection's.
        ("patients", None, "home/1", here("eu")),
        ("docs", None, "acme", None),
    ] {
        let rule = rule(name, tag).unwrap();
        assert_eq!(placed(&rule, id), Ok(expected), "{name} {tag:?} {id}");
    }
}

#[test]
fn a_call_cannot_say_another_region_than_is_configured() {
    for (name, tag, id, whose) in [
        ("docs", "eu", "acme/1", "tenant `acme`"),
        ("patients", "gdpr", "a", "collection `patients`"),
        ("patients", "us", "home/1", "tenant `home`"),
    ] {
        let rule = rule(name, Some(tag)).unwrap();
        let refused = placed(&rule, id).unwrap_err();
        assert_eq!(refused.reason(), "not_allowed");
        let told = refused.to_string();
        assert!(told.contains(whose) && told.contains(tag), "{told}");
    }
}

#[test]
fn a_tag_of_no_region_is_refused_with_those_there_are() {
    let refused = rule("docs", Some("mars")).unwrap_err();
    assert_eq!(refused.reason(), "unknown");
    let told = refused.to_string();
    let known = "`cn`, `eu`, `gdpr`, `hipaa`, `us`";
    assert!(told.contains("`mars`") && told.contains(known), "{told}");
    let called = "docs".parse().unwrap();
    let off = residency("{}").rule(&called, &collection("docs"), &said(Some("eu")));
    let refused = off.unwrap_err();
    assert_eq!(refused.reason(), "off");
    assert!(refused.to_string().contains("gateway.residency.region"));
}

#[test]
fn a_region_without_a_gateway_is_told_with_what_to_do() {
    let rule = rule("docs", None).unwrap();
    let refused = placed(&rule, "zhang/1").unwrap_err();
    assert_eq!(refused.reason(), "no_way");
    let told = refused.to_string();
    for part in ["`cn`", "`eu`", "gateway.residency.regions.cn.gateways"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn what_another_gateway_sent_on_is_written_here_or_nowhere() {
    let mut headers = HeaderMap::new();
    headers.insert(FORWARDED_FROM, HeaderValue::from_static("us"));
    for (tag, expected) in [("eu", Ok(here("eu"))), ("us", Err("not_here"))] {
        headers.insert(RESIDENCY, HeaderValue::from_static(tag));
        let said = Said::of(&headers).unwrap();
        let called = "docs".parse().unwrap();
        let rule = residency(CONFIG).rule(&called, &collection("docs"), &said);
        let found = placed(&rule.unwrap(), "a");
        assert_eq!(found.map_err(|error| error.reason()), expected, "{tag}");
    }
}

#[test]
fn a_collections_tag_counts_under_every_name_of_it() {
    let generation = Collection {
        reads: Some("patients".parse().unwrap()),
        ..collection("patients-g2")
    };
    let copied = Collection {
        fed_by: Some("patients".parse().unwrap()),
        ..collection("patients-g3")
    };
    let residency = residency(CONFIG);
    for (called, defined) in [
        ("patients-g2", &generation),
        ("patients-g3", &copied),
        ("alias", &collection("patients")),
        ("patients", &collection("anything")),
    ] {
        let called = called.parse().unwrap();
        let rule = residency.rule(&called, defined, &Said::default()).unwrap();
        assert_eq!(placed(&rule, "a"), Ok(there("us")), "{called}");
    }
    let torn = CONFIG.replace(
        r#""patients": "hipaa""#,
        r#""patients": "us", "live": "eu""#,
    );
    let live = "live".parse().unwrap();
    let torn = self::residency(&torn).rule(&live, &collection("patients"), &Said::default());
    assert_eq!(torn.unwrap_err().reason(), "torn");
}

#[test]
fn tenants_are_those_of_collections_that_route_by_them() {
    let plain = Collection {
        route_by_key_prefix: false,
        ..collection("docs")
    };
    let called = "docs".parse().unwrap();
    let rule = residency(CONFIG).rule(&called, &plain, &Said::default());
    assert_eq!(placed(&rule.unwrap(), "acme/1"), Ok(None));
}

#[test]
fn a_header_that_does_not_read_is_no_missing_one() {
    let long = "x".repeat(129);
    for values in [&[""][..], &["  "], &[long.as_str()], &["eu", "us"]] {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(RESIDENCY, HeaderValue::from_str(value).unwrap());
        }
        assert_eq!(Said::of(&headers), Err(ResidencyError::Malformed));
    }
    let mut headers = HeaderMap::new();
    headers.insert(RESIDENCY, HeaderValue::from_bytes(b"\xff").unwrap());
    assert_eq!(Said::of(&headers), Err(ResidencyError::Malformed));
    headers.insert(RESIDENCY, HeaderValue::from_static("eu"));
    headers.append(RESIDENCY, HeaderValue::from_static(" eu"));
    assert_eq!(Said::of(&headers), Ok(said(Some("eu"))));
}
