//! Sealed segments in every metric, of dimensions that are computed in different ways: odd ones, and such as are a
//! little below or above what is computed together.

use std::time::Duration;

use half::f16;
use shoal_indexer::{index::distance::Query, shard::search::Ask};
use shoal_runtime::eventually;
use shoal_schemas::{Dim, Metric, Payload, Quantization, v1};

use crate::world::{DEADLINE, Live, World, assert_coded, components};

const DIMS: [u32; 5] = [2, 3, 9, 255, 257];
const METRICS: [Metric; 3] = [Metric::Cosine, Metric::InnerProduct, Metric::L2];
const ROWS: u32 = 300;
const QUERIES: u64 = 40;
/// So many of the nearest are to be found, each at its place.
const RANKS: usize = 5;
/// So many are asked for, of which the first are looked at: coarse codes of few components take more candidates. With
/// the beam of the collection all rows are measured by their codes.
const K: usize = 20;
/// So many are asked for with a beam so narrow that the graph is walked instead.
const WALKED: usize = 12;
const BEAM: usize = 24;

fn name(id: usize) -> String {
    format!("id-{id}")
}

/// Distance and id of each, as they come.
fn pairs(hits: &[v1::Hit]) -> Vec<(f32, String)> {
    let pairs = hits.iter().map(|hit| (hit.distance, hit.id.clone()));
    pairs.collect()
}

/// Of a hundred of the nearest so many are found at least, by codes and by a walk.
fn least(dim: u32, metric: Metric, quantization: Quantization) -> (usize, usize) {
    match (dim, metric, quantization) {
        // Half a byte each of two components tells but a few dozen directions apart.
        (2, Metric::Cosine, Quantization::I4) => (60, 45),
        _ => (95, 80),
    }
}

/// A shard, and the vectors it is to hold.
struct Case {
    world: World,
    live: Live,
    rows: Vec<Vec<f32>>,
    what: String,
}

impl Case {
    fn new(dim: u32, metric: Metric, quantization: Quantization) -> Self {
        let mut world = World::new();
        world.collection.dim = Dim::try_from(dim).unwrap();
        world.collection.metric = metric;
        world.collection.index.quantization = Some(quantization);
        world.collection.check().unwrap();
        // All of them are sealed together.
        world.engine.idle_seal_rows = ROWS;
        world.engine.idle_seal_after = Duration::from_millis(1);
        let rows = (0..u64::from(ROWS)).map(|row| {
            let mut row = components(1_000 + row, dim);
            if quantization == Quantization::F16 {
                for component in &mut row {
                    *component = f16::from_f32(*component).to_f32();
                }
            }
            row
        });
        let rows: Vec<Vec<f32>> = rows.collect();
        for (id, row) in rows.iter().enumerate() {
            world.send(&world.record_of(&name(id), row, Payload::default()));
        }
        Self {
            live: world.open(),
            world,
            rows,
            what: format!("{dim} {metric:?} {quantization:?}"),
        }
    }

    /// Waits until all is sealed; gives the bytes that a component takes in the file.
    fn sealed(&self) -> usize {
        self.world.caught_up(&self.live);
        eventually(DEADLINE, "the rows are sealed", || {
            let (view, _) = self.live.shared.moment();
            let (growing, others) = view.segments.split_last().unwrap();
            let [sealed] = others else { return None };
            let precision = sealed.precision().filter(|_| growing.is_empty());
            precision.map(|precision| precision.bytes())
        })
    }

    /// Asks everything.
    fn check(&self) {
        let Self { live, what, .. } = self;
        let collection = &self.world.collection;
        let (dim, metric) = (u32::from(collection.dim), collection.metric);
        let (mut looked, mut walked, mut wanted) = (0, 0, 0);
        for seed in 0..QUERIES {
            let asked = components(1_000_000 + seed, dim);
            let query = Query::new(metric, &asked);
            let rows = self.rows.iter().enumerate();
            let rows = rows.map(|(id, row)| (query.distance(row), name(id)));
            let mut truth: Vec<(f32, String)> = rows.collect();
            truth.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
            let ask = Ask::nearest(asked.clone(), K);
            let exact = live.shared.search(&Ask {
                exact: true,
                ..ask.clone()
            });
            assert_eq!(pairs(&exact.unwrap()), truth[..K], "{what}");

            let found = pairs(&live.shared.search(&ask).unwrap());
            let walk = Ask {
                k: WALKED,
                beam: Some(BEAM),
                explain: true,
                ..ask
            };
            let answer = live.shared.answer(&walk, &|| false).unwrap();
            let explain = answer.explain.first().unwrap();
            assert_eq!(explain.plan(), v1::SearchPlan::Graph, "{what}");
            let met = pairs(&answer.hits);
            assert_eq!((found.len(), met.len()), (K, WALKED), "{what}");
            for one in found.iter().chain(&met) {
                assert!(truth.contains(one), "{what}: {one:?} is not so far off");
            }
            let nearest = &truth[..RANKS];
            let placed = found.iter().zip(nearest);
            looked += placed.filter(|(found, nearest)| found == nearest).count();
            walked += nearest.iter().filter(|one| met.contains(one)).count();
            wanted += RANKS;
        }
        let (by_codes, by_walks) = least(dim, metric, collection.quantization());
        assert!(
            looked * 100 >= wanted * by_codes,
            "{what}: {looked} of {wanted} by codes"
        );
        assert!(
            walked * 100 >= wanted * by_walks,
            "{what}: {walked} of {wanted} by a walk"
        );

        let ids: Vec<String> = (0..self.rows.len()).map(name).collect();
        let stored = live.shared.points(&ids, true).unwrap();
        assert_eq!(stored.len(), ids.len(), "{what}");
        for (stored, (id, row)) in stored.iter().zip(ids.iter().zip(&self.rows)) {
            let point = stored.point.as_ref().unwrap();
            assert_eq!(point.id, *id, "{what}");
            assert_eq!(point.vector, *row, "{what}: {id} to the last bit");
        }
    }
}

/// What is to be so in every dimension and metric; `bytes` is what a component takes in the files of exact vectors.
fn check(quantization: Quantization, bytes: usize) {
    let of_dim = |dim| METRICS.map(|metric| Case::new(dim, metric, quantization));
    // All beside each other: most of the time they wait.
    let cases: Vec<Case> = DIMS.into_iter().flat_map(of_dim).collect();
    for case in &cases {
        assert_eq!(case.sealed(), bytes, "{}", case.what);
        let rows = usize::try_from(ROWS).unwrap();
        assert_eq!(assert_coded(&case.live), rows, "{}", case.what);
        case.check();
    }
    for case in &cases {
        case.live.cancel.cancel();
    }
    for case in cases {
        case.live.close();
    }
}

#[test]
fn codes_of_two_bytes_find_the_nearest_in_any_dimension_and_metric() {
    check(Quantization::F16, 2);
}

#[test]
fn codes_of_one_byte_find_the_nearest_in_any_dimension_and_metric() {
    check(Quantization::I8, 4);
}

#[test]
fn codes_of_half_a_byte_find_the_nearest_in_any_dimension_and_metric() {
    check(Quantization::I4, 4);
}
