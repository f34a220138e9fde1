//! A stream of upserts, replacements and deletes over a limited set of ids, noted in the model.

use std::collections::BTreeMap;

use shoal_producer::Publisher;
use shoal_schemas::{Payload, Point, PointId, Value, Vector};

use super::{model::Model, seed::Random, topic, wait, world};

/// Of ten records so many are deletes.
const DELETES_OF_TEN: u64 = 1;
/// Of ten points that replace one so many keep its vector.
const KEPT_OF_TEN: u64 = 3;

/// Publishes `records` random changes of `ids` ids, all acknowledged when it returns.
pub(crate) fn churn(
    publisher: &Publisher,
    model: &mut Model,
    random: &mut Random,
    ids: u64,
    records: u64,
) {
    let mut sent = Vec::new();
    let points = model.points().iter();
    let mut vectors: BTreeMap<PointId, Vector> = points
        .map(|(id, (_, point))| (id.clone(), point.vector.clone()))
        .collect();
    for _ in 0..records {
        let id = PointId::new(&format!("id-{}", random.below(ids))).unwrap();
        if random.below(10) < DELETES_OF_TEN {
            vectors.remove(&id);
            sent.push((wait(publisher.delete(&id)).unwrap(), None));
        } else {
            let mut point = point(model, random);
            let kept = vectors.get(&id).filter(|_| random.below(10) < KEPT_OF_TEN);
            if let Some(vector) = kept {
                point.vector = vector.clone();
            }
            vectors.insert(id.clone(), point.vector.clone());
            sent.push((wait(publisher.publish(&id, &point)).unwrap(), Some(point)));
        }
    }
    for (delivery, point) in sent {
        let token = wait(delivery).unwrap();
        match point {
            Some(point) => model.upsert(&token.key, token.version, &point),
            None => model.delete(&token.key),
        }
    }
}

/// `count` points with ids `<prefix>-<number>`.
pub(crate) fn points(
    model: &Model,
    random: &mut Random,
    prefix: &str,
    count: usize,
) -> Vec<(PointId, Point)> {
    let numbered = (0..count).map(|number| {
        let id = PointId::new(&format!("{prefix}-{number}")).unwrap();
        (id, point(model, random))
    });
    numbered.collect()
}

/// A point with a random vector and a payload of every kind.
pub(crate) fn point(model: &Model, random: &mut Random) -> Point {
    let collection = &model.collection;
    let vector = random.vector(collection.dim.into());
    let fields = [
        (
            "n",
            Value::Integer(i64::try_from(random.below(1000)).unwrap()),
        ),
        ("half", Value::Float(0.5)),
        ("even", Value::Boolean(random.below(2) == 0)),
        ("seen", Value::Timestamp(world::now_ms())),
        (
            "title",
            Value::String(format!("title {}", random.below(100))),
        ),
        ("tags", Value::Strings(vec!["a".to_owned(), "b".to_owned()])),
    ];
    Point {
        payload: Payload(fields.map(|(name, value)| (name.to_owned(), value)).into()),
        model: Some("random".to_owned()),
        event_time_ms: Some(world::now_ms()),
        ..topic::point(collection, &vector)
    }
}
