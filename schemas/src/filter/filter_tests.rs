//! Tests of what filters mean and of what is refused.

use std::ops::Bound;

use proptest::{collection::vec, prelude::*};
use serde_json::{Value as Json, json};

use super::{Bounds, Fields, Filter, FilterError, MAX_DEPTH, MAX_NODES, MAX_VALUES, arbitrary};
use crate::{FieldKind, Payload, Value};

fn fields() -> Fields {
    let fields = [
        ("category", FieldKind::Integer),
        ("words", FieldKind::Keyword),
        ("score", FieldKind::Float),
        ("hot", FieldKind::Boolean),
        ("at", FieldKind::Timestamp),
    ];
    fields.map(|(name, kind)| (name.to_owned(), kind)).into()
}

fn resolved(filter: Json) -> Result<Filter, FilterError> {
    Filter::from_json(&filter).unwrap().resolve(&fields())
}

fn payload() -> Payload {
    let Json::Object(fields) = json!({
        "category": 3, "words": ["red", "blue"], "score": 0.5, "hot": true,
        "at": {"timestamp_ms": 1_700_000_000_000_i64}, "other": 1,
    }) else {
        panic!("an object");
    };
    Payload::from_json(fields).unwrap()
}

#[test]
fn every_condition_tells_a_match_from_a_miss() {
    for (matching, missing) in [
        (
            json!({"field": "category", "equals": 3}),
            json!({"field": "category", "equals": 4}),
        ),
        (
            json!({"field": "category", "equals": 3.0}),
            json!({"field": "category", "equals": 3.5}),
        ),
        (
            json!({"field": "words", "in": ["x", "red"]}),
            json!({"field": "words", "in": ["re"]}),
        ),
        (
            json!({"field": "words", "prefix": "bl"}),
            json!({"field": "words", "prefix": "lu"}),
        ),
        (
            json!({"field": "hot", "equals": true}),
            json!({"field": "hot", "equals": false}),
        ),
        (
            json!({"field": "score", "range": {"gt": 0, "lte": 0.5}}),
            json!({"field": "score", "range": {"gt": 0.5}}),
        ),
        (
            json!({"field": "words", "range": {"gte": "c", "lt": "s"}}),
            json!({"field": "words", "range": {"gte": "c", "lt": "e"}}),
        ),
        (
            json!({"field": "at", "equals": "2023-11-14T22:13:20Z"}),
            json!({"field": "at", "equals": 1_700_000_000_001_i64}),
        ),
        (
            json!({"field": "at", "range": {"lt": {"timestamp_ms": 1_700_000_000_001_i64}}}),
            json!({"field": "at", "range": {"lt": "2023-11-14T22:13:20Z"}}),
        ),
        (json!({"all": []}), json!({"any": []})),
        (
            json!({"field": "at", "exists": true}),
            json!({"field": "at", "exists": false}),
        ),
    ] {
        let holds = |filter: &Json| resolved(filter.clone()).unwrap().matches(&payload());
        assert!(holds(&matching), "{matching}");
        assert!(!holds(&missing), "{missing}");
        assert!(!holds(&json!({"not": matching})), "not {matching}");
        assert!(holds(&json!({"not": missing})), "not {missing}");
    }
}

#[test]
fn one_item_of_a_list_has_to_lie_within_both_ends() {
    let between = resolved(json!({"field": "words", "range": {"gt": "c", "lt": "d"}})).unwrap();
    // "red" is above and "blue" is below, but none of them is between.
    assert!(!between.matches(&payload()));
}

#[test]
fn a_value_of_another_kind_than_declared_counts_as_absent() {
    let wrong = Payload([("category".to_owned(), Value::String("3".to_owned()))].into());
    let exists = resolved(json!({"field": "category", "exists": true})).unwrap();
    assert!(exists.matches(&wrong));
    assert!(!exists.matches_declared(&wrong, &fields()));
    let float = Payload([("category".to_owned(), Value::Float(3.0))].into());
    assert!(exists.matches_declared(&float, &fields()));
    let absent = Payload::default();
    let not_three = resolved(json!({"not": {"field": "category", "equals": 3}})).unwrap();
    assert!(not_three.matches_declared(&wrong, &fields()));
    assert!(not_three.matches_declared(&absent, &fields()));
}

#[test]
fn what_does_not_fit_the_declaration_is_refused_with_its_place_and_a_way_out() {
    for (filter, texts) in [
        (
            json!({"all": [{"not": {"field": "colour", "equals": 1}}]}),
            [
                "filter.all[0].not: ",
                "`colour` is not declared",
                "hot (boolean)",
            ],
        ),
        (
            json!({"any": [{"all": []}, {"field": "category", "equals": "3"}]}),
            ["filter.any[1]: ", "kind integer", "the text `3`"],
        ),
        (
            json!({"field": "category", "prefix": "3"}),
            ["`prefix` does not work", "kind integer", "keyword fields"],
        ),
        (
            json!({"field": "hot", "range": {"gte": false}}),
            ["`range` does not work", "kind boolean", "timestamp"],
        ),
        (
            json!({"field": "at", "equals": "yesterday"}),
            ["kind timestamp", "RFC 3339", "`yesterday`"],
        ),
        (
            json!({"field": "words", "equals": ["a"]}),
            ["kind keyword", "a text", "list"],
        ),
        (
            json!({"field": "score", "range": {}}),
            ["`score`", "no bound", "gte"],
        ),
        (
            json!({"field": "score", "range": {"gte": 1, "lt": "2"}}),
            ["`score`", "finite number", "the text `2`"],
        ),
    ] {
        let refused = resolved(filter).unwrap_err().to_string();
        for text in texts {
            assert!(refused.contains(text), "`{text}` in {refused}");
        }
    }
    let infinite = Filter::In {
        field: "score".to_owned(),
        values: vec![Value::Float(f64::INFINITY)],
    };
    assert!(infinite.check(&fields()).is_err());
    let undeclared = Filter::Exists {
        field: "x".to_owned(),
    };
    let refused = undeclared.check(&Fields::new()).unwrap_err().to_string();
    assert!(refused.contains("declared are none"), "{refused}");
}

#[test]
fn depth_and_size_have_an_end() {
    let nested = |depth: usize| {
        (1..depth).fold(Filter::All(Vec::new()), |part, _| {
            Filter::Not(Box::new(part))
        })
    };
    assert_eq!(nested(MAX_DEPTH).check(&fields()), Ok(()));
    let deep = nested(MAX_DEPTH + 1).check(&fields());
    assert!(matches!(deep, Err(FilterError::TooDeep { .. })));
    let wide = |nodes: usize| Filter::All(vec![Filter::Any(Vec::new()); nodes - 1]);
    assert_eq!(wide(MAX_NODES).check(&fields()), Ok(()));
    let wider = wide(MAX_NODES + 1).check(&fields());
    assert_eq!(wider, Err(FilterError::TooManyNodes));
    let long = |values: usize| Filter::In {
        field: "category".to_owned(),
        values: vec![Value::Integer(1); values],
    };
    assert_eq!(long(MAX_VALUES).check(&fields()), Ok(()));
    let longer = Filter::All(vec![long(MAX_VALUES), long(1)]).check(&fields());
    assert_eq!(longer, Err(FilterError::TooManyValues));
}

#[test]
fn a_message_of_the_deepest_filter_is_within_the_codecs_own_limit() {
    use prost::Message as _;
    let deepest = (1..MAX_DEPTH).fold(Filter::All(Vec::new()), |part, _| Filter::All(vec![part]));
    let bytes = deepest.to_proto().encode_to_vec();
    let read = crate::v1::Filter::decode(bytes.as_slice()).unwrap();
    assert_eq!(Filter::from_proto(read).unwrap(), deepest);
}

proptest! {
    #[test]
    fn negation_and_de_morgan_hold(
        parts in vec(arbitrary::filter(), 0..4),
        payload in arbitrary::payload(),
    ) {
        let fields = arbitrary::fields();
        let not = |filter: &Filter| Filter::Not(Box::new(filter.clone()));
        let negated: Vec<Filter> = parts.iter().map(not).collect();
        let holds = |filter: Filter| filter.matches_declared(&payload, &fields);
        for (part, negated) in parts.iter().zip(&negated) {
            prop_assert_ne!(holds(part.clone()), holds(negated.clone()));
        }
        prop_assert_eq!(
            holds(not(&Filter::All(parts.clone()))),
            holds(Filter::Any(negated.clone()))
        );
        prop_assert_eq!(holds(not(&Filter::Any(parts))), holds(Filter::All(negated)));
    }

    #[test]
    fn in_is_any_of_its_values_and_a_closed_range_of_one_value(
        filter in arbitrary::filter(),
        payload in arbitrary::payload(),
    ) {
        if let Filter::In { field, values } = &filter {
            let one = |value: &Value| Filter::In {
                field: field.clone(),
                values: vec![value.clone()],
            };
            let any = Filter::Any(values.iter().map(one).collect());
            prop_assert_eq!(filter.matches(&payload), any.matches(&payload));
            for value in values {
                let range = Filter::Range {
                    field: field.clone(),
                    bounds: Bounds {
                        lower: Bound::Included(value.clone()),
                        upper: Bound::Included(value.clone()),
                    },
                };
                let comparable = !matches!(value, Value::Boolean(_));
                prop_assert_eq!(
                    range.matches(&payload),
                    comparable && one(value).matches(&payload)
                );
            }
        }
    }

    #[test]
    fn only_existence_depends_on_the_declaration(
        filter in arbitrary::filter(),
        payload in arbitrary::payload(),
    ) {
        let fields = arbitrary::fields();
        let mut held = payload.clone();
        held.0.retain(|name, value| fields[name].holds(value));
        prop_assert_eq!(
            filter.matches_declared(&payload, &fields),
            filter.matches(&held)
        );
        prop_assert_eq!(filter.clone().resolve(&fields), Ok(filter));
    }
}
