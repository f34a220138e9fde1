//! What a search can ask for beyond the nearest k, against a model that looks at every point.

use std::collections::BTreeMap;

use shoal_indexer::shard::search::{After, Ask, CountAsk, GroupBy, ScrollAsk};
use shoal_runtime::eventually;
use shoal_schemas::{
    FieldKind, Filter, Payload, Tenant,
    payload::{Selection, Value},
    v1,
};

use crate::world::{DEADLINE, Live, World, vector};

const POINTS: u64 = 1400;

/// A shard of which about a third is sealed, a third in a growing graph and the rest in memory;
/// some points were replaced and some deleted.
struct Asked {
    world: World,
    live: Live,
    /// What is served: seed and payload by id.
    points: BTreeMap<String, (u64, Payload)>,
}

fn payload(number: u64) -> Payload {
    let words = ["ant", "bee", "cat", "cow", "dog"];
    let mut fields = BTreeMap::from([
        ("category".to_owned(), Value::Integer((number % 7) as i64)),
        ("rank".to_owned(), Value::Float(number as f64 / 3.0)),
        ("untold".to_owned(), Value::Boolean(true)),
    ]);
    if !number.is_multiple_of(3) {
        let word = |at: u64| words[(at % 5) as usize].to_owned();
        let both = vec![word(number), word(number / 5)];
        fields.insert("words".to_owned(), Value::Strings(both));
    }
    Payload(fields)
}

impl Asked {
    fn new() -> Self {
        let mut world = World::new();
        world.collection.route_by_key_prefix = true;
        world.collection.fields = BTreeMap::from([
            ("category".to_owned(), FieldKind::Integer),
            ("rank".to_owned(), FieldKind::Float),
            ("words".to_owned(), FieldKind::Keyword),
        ]);
        let live = world.open();
        let mut asked = Self {
            world,
            live,
            points: BTreeMap::new(),
        };
        for number in 0..POINTS {
            asked.put(&format!("t{}/p{number}", number % 50), number);
            if number.is_multiple_of(9) {
                asked.put(&format!("t{}/p{number}", number % 50), number + 10_000);
            }
        }
        for number in (0..POINTS).step_by(31) {
            let id = format!("t{}/p{number}", number % 50);
            asked.world.delete(&id);
            asked.points.remove(&id);
        }
        asked.world.caught_up(&asked.live);
        eventually(DEADLINE, "the full segments are sealed", || {
            let (view, _) = asked.live.shared.moment();
            let (_, others) = view.segments.split_last().unwrap();
            let sealed = others.iter().all(|one| one.as_sealed().is_some());
            (others.len() > 1 && sealed).then_some(())
        });
        asked
    }

    fn put(&mut self, id: &str, number: u64) {
        self.world.upsert_with(id, number, payload(number));
        self.points.insert(id.to_owned(), (number, payload(number)));
    }

    fn ask(&self, seed: u64, k: usize) -> Ask {
        Ask::nearest(vector(seed), k)
    }

    /// The ids that match, nearest first, by a search that looks at everything.
    fn order(&self, seed: u64, filter: Option<&Filter>) -> Vec<v1::Hit> {
        let everything = Ask {
            exact: true,
            with_payload: true,
            ..self.ask(seed, self.points.len())
        };
        let hits = self.live.shared.search(&everything).unwrap();
        assert_eq!(hits.len(), self.points.len());
        let matches = |hit: &v1::Hit| {
            filter.is_none_or(|filter| {
                let (_, payload) = &self.points[&hit.id];
                filter.matches_declared(payload, &self.world.collection.fields)
            })
        };
        hits.into_iter().filter(matches).collect()
    }
}

fn ids(hits: &[v1::Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.id.as_str()).collect()
}

fn filters() -> Vec<Filter> {
    let category = |values: &[i64]| Filter::In {
        field: "category".into(),
        values: values.iter().map(|value| Value::Integer(*value)).collect(),
    };
    let words = |prefix: &str| Filter::Prefix {
        field: "words".into(),
        prefix: prefix.into(),
    };
    let below = |rank: f64| Filter::Range {
        field: "rank".into(),
        bounds: shoal_schemas::filter::Bounds {
            lower: std::ops::Bound::Unbounded,
            upper: std::ops::Bound::Excluded(Value::Float(rank)),
        },
    };
    vec![
        category(&[3]),
        category(&[0, 1, 2, 3, 4, 5]),
        Filter::All(vec![category(&[2, 4]), words("c")]),
        Filter::Any(vec![words("dog"), below(5.0)]),
        Filter::Not(Box::new(Filter::Exists {
            field: "words".into(),
        })),
        below(2.0),
        Filter::Any(Vec::new()),
    ]
}

#[test]
fn a_filtered_search_finds_what_a_look_at_every_point_finds() {
    let asked = Asked::new();
    for (number, filter) in (0u64..).zip(filters()) {
        let expected = asked.order(number, Some(&filter));
        for (exact, k) in [(true, 10), (false, 10), (false, 100)] {
            let ask = Ask {
                filter: Some(filter.clone()),
                exact,
                explain: true,
                ..asked.ask(number, k)
            };
            let answer = asked.live.shared.answer(&ask, &|| false).unwrap();
            let expected = &expected[..expected.len().min(k)];
            let found = ids(&answer.hits);
            // In eight dimensions a walk misses next to nothing.
            let hit = found.iter().filter(|id| ids(expected).contains(id)).count();
            assert_eq!(found.len(), expected.len(), "{filter:?}");
            let missed = expected.len() - hit;
            assert!(missed * 50 <= expected.len(), "{filter:?}: {missed} missed");
            assert!(!exact || found == ids(expected), "{filter:?}");
            let explain = answer.explain.first().unwrap();
            assert!(explain.estimated_matches >= explain.matches.unwrap());
        }
        let count = asked.live.shared.count(&CountAsk {
            filter: Some(filter.clone()),
            tenant: None,
        });
        assert_eq!(count.unwrap(), expected.len() as u64, "{filter:?}");
    }
    asked.live.close();
}

#[test]
fn a_tenant_sees_its_own_points_alone_also_after_a_restart() {
    let asked = Asked::new();
    let Asked {
        world,
        live,
        points,
    } = asked;
    live.close();
    let live = world.open();
    world.caught_up(&live);
    for tenant in ["t3", "t49", "t5", "nobody"] {
        let tenant = Tenant::new(tenant, &world.collection).unwrap();
        let own = points.keys().filter(|id| tenant.holds(id)).count();
        let ask = Ask {
            tenant: Some(tenant.clone()),
            ..Ask::nearest(vector(4), 100)
        };
        let hits = live.shared.search(&ask).unwrap();
        assert_eq!(hits.len(), own);
        assert!(hits.iter().all(|hit| tenant.holds(&hit.id)));
        let count = live.shared.count(&CountAsk {
            filter: None,
            tenant: Some(tenant),
        });
        assert_eq!(count.unwrap(), own as u64);
    }
    live.close();
}

#[test]
fn pages_behind_the_last_hit_lead_through_everything_once() {
    let asked = Asked::new();
    let filter = filters().swap_remove(1);
    let expected = asked.order(6, Some(&filter));
    let (mut after, mut found): (Option<After>, Vec<String>) = (None, Vec::new());
    loop {
        let ask = Ask {
            filter: Some(filter.clone()),
            after: after.take(),
            ..asked.ask(6, 150)
        };
        let hits = asked.live.shared.search(&ask).unwrap();
        let Some(last) = hits.last() else { break };
        after = Some(After {
            distance: last.distance,
            id: last.id.clone(),
        });
        found.extend(hits.into_iter().map(|hit| hit.id));
    }
    // Whatever a walk passes over on one page is behind the reader on the next.
    assert!(found.len() * 100 >= expected.len() * 99);
    let mut once = found.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), found.len());
    asked.live.close();
}

#[test]
fn a_range_ends_at_its_distance_and_groups_hold_their_nearest() {
    let asked = Asked::new();
    let order = asked.order(8, None);
    let most = order[40].distance;
    let ask = Ask {
        max_distance: Some(most),
        ..asked.ask(8, 500)
    };
    let hits = asked.live.shared.search(&ask).unwrap();
    assert!(hits.len() >= 40 && hits.iter().all(|hit| hit.distance <= most));

    let ask = Ask {
        group_by: Some(GroupBy {
            field: "category".into(),
            kind: FieldKind::Integer,
            group_size: 3,
        }),
        with_payload: true,
        selection: Selection::new(&["category".to_owned()], &[]),
        ..asked.ask(8, 5)
    };
    let answer = asked.live.shared.answer(&ask, &|| false).unwrap();
    assert_eq!(answer.groups.len(), 5);
    for group in &answer.groups {
        let Some(v1::value::Kind::Integer(category)) = group.value.as_ref().unwrap().kind else {
            panic!("a category is an integer");
        };
        let nearest = order
            .iter()
            .filter(|hit| asked.points[&hit.id].1.0["category"] == Value::Integer(category));
        let expected: Vec<&str> = nearest.take(3).map(|hit| hit.id.as_str()).collect();
        assert_eq!(ids(&group.hits), expected);
        let fields: Vec<_> = group.hits[0].payload.keys().collect();
        assert_eq!(fields, ["category"]);
    }
    asked.live.close();
}

#[test]
fn a_scroll_gives_every_point_once_in_the_order_of_ids() {
    let asked = Asked::new();
    let mut found: Vec<String> = Vec::new();
    loop {
        let page = asked.live.shared.scroll(&ScrollAsk {
            filter: None,
            tenant: None,
            after_id: found.last().cloned().unwrap_or_default(),
            limit: 300,
            with_vector: true,
            selection: Selection::default(),
        });
        let page = page.unwrap();
        if page.is_empty() {
            break;
        }
        for stored in page {
            let point = stored.point.unwrap();
            let (seed, payload) = &asked.points[&point.id];
            assert_eq!(point.vector, vector(*seed));
            assert_eq!(point.payload, payload.to_proto());
            found.push(point.id);
        }
    }
    assert!(found.iter().eq(asked.points.keys()));
    asked.live.close();
}
