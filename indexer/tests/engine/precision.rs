//! Compaction keeps vectors to the last bit, and codes as they would be made anew, where files keep
//! halves of floats, and where they no longer can.

use std::{collections::BTreeSet, time::Duration};

use half::f16;
use shoal_runtime::eventually;
use shoal_schemas::{Metric, Payload, Quantization};

use crate::world::{DEADLINE, Live, World, assert_coded, vector};

const IDS: u64 = 200;

/// Components that half a float holds.
fn short(seed: u64) -> Vec<f32> {
    let halves = vector(seed).into_iter().map(f16::from_f32);
    halves.map(f16::to_f32).collect()
}

fn name(id: u64) -> String {
    format!("id-{id}")
}

/// Writes each id `turns` times over, and waits until all is sealed and what has ended compacted away.
fn turn_over(world: &World, live: &Live, turns: u64, of: impl Fn(u64) -> Vec<f32>) {
    for turn in 0..turns {
        for id in 0..IDS {
            let vector = of(turn * IDS + id);
            world.send(&world.record_of(&name(id), &vector, Payload::default()));
        }
    }
    world.caught_up(live);
    eventually(
        DEADLINE,
        "all is sealed, and dead rows compacted away",
        || {
            let (view, _) = live.shared.moment();
            let sealed = view.segments.iter().filter_map(|one| one.precision());
            let is_sealed = view.growing().is_empty() && sealed.count() + 1 == view.segments.len();
            let rows: u32 = view.segments.iter().map(|segment| segment.len()).sum();
            (is_sealed && u64::from(rows) < IDS * 3).then_some(())
        },
    );
    assert_eq!(assert_coded(live), usize::try_from(IDS).unwrap());
}

fn check(live: &Live, id: u64, expected: &[f32]) {
    let stored = live.shared.points(&[name(id)], true).unwrap();
    let point = stored.first().and_then(|one| one.point.as_ref());
    assert_eq!(point.unwrap().vector, expected, "{}", name(id));
}

/// Bytes a component takes in the sealed segments.
fn bytes(live: &Live) -> BTreeSet<usize> {
    let (view, _) = live.shared.moment();
    let sealed = view
        .segments
        .iter()
        .filter_map(|segment| segment.precision());
    sealed.map(|precision| precision.bytes()).collect()
}

#[test]
fn compaction_copies_vectors_and_codes_of_either_precision() {
    for (metric, quantization) in [
        (Metric::Cosine, Quantization::F32),
        // One whose codes have biases, and one whose step is found anew for each segment.
        (Metric::L2, Quantization::Bf16),
        (Metric::L2, Quantization::I8),
    ] {
        let mut world = World::new();
        world.collection.metric = metric;
        world.collection.index.quantization = Some(quantization);
        world.engine.idle_seal_rows = 1;
        world.engine.idle_seal_after = Duration::from_millis(1);
        let live = world.open();
        turn_over(&world, &live, 20, short);
        assert_eq!(bytes(&live), [2].into(), "halves do");
        for id in 0..IDS {
            check(&live, id, &short(19 * IDS + id));
        }
        turn_over(&world, &live, 20, |seed| match seed.is_multiple_of(2) {
            true => short(seed),
            false => vector(seed),
        });
        assert!(bytes(&live).contains(&4), "halves do no longer");
        for id in 0..IDS {
            let seed = 19 * IDS + id;
            let expected = match seed.is_multiple_of(2) {
                true => short(seed),
                false => vector(seed),
            };
            check(&live, id, &expected);
        }
        live.close();
    }
}
