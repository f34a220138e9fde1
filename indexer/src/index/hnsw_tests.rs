//! Tests of the graph: what it holds of a vector, and what its distances are.

use std::sync::atomic::{AtomicBool, Ordering};

use shoal_schemas::{Dim, IndexParameters, Metric, Quantization};

use super::{Hnsw, Options};
use crate::index::{VectorIndex, distance::Query};

fn options(metric: Metric, quantization: Quantization) -> Options {
    Options {
        dim: Dim::try_from(32).unwrap(),
        metric,
        parameters: IndexParameters {
            quantization,
            ..IndexParameters::default()
        },
        threads: 2,
    }
}

/// Neither unit vectors nor of one length.
fn vector(seed: u16) -> Vec<f32> {
    let components = (0..32u16).map(|at| f32::from(seed.wrapping_mul(at * 7 + 3) % 251) - 120.0);
    components
        .map(|component| component * f32::from(seed % 9 + 1))
        .collect()
}

#[test]
fn distances_are_the_cosine_of_what_the_graph_holds_also_after_a_restart() {
    for quantization in [Quantization::Bf16, Quantization::I8] {
        distances_are_the_cosine_of_what_it_holds(&options(Metric::Cosine, quantization));
    }
}

fn distances_are_the_cosine_of_what_it_holds(options: &Options) {
    let graph = Hnsw::new(options).unwrap();
    // Every other number is passed over.
    for seed in 1..200u16 {
        graph.add(u32::from(seed) * 2, &vector(seed)).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph");
    graph.save(&path).unwrap();
    let loaded = Hnsw::load(&path, options).unwrap();
    for graph in [&graph, &loaded] {
        let asked = vector(55);
        let query = Query::new(Metric::Cosine, &asked);
        let near = graph.search(&asked, 20, None).unwrap();
        assert_eq!(near.len(), 20);
        assert_eq!(near.first().unwrap().row, 110);
        assert!(near.is_sorted_by_key(|near| near.distance));
        for near in near {
            let exact = query.distance(&graph.vector(near.row).unwrap());
            let off = (near.distance - exact).abs();
            assert!(off < 1e-2, "{off} for a distance of {exact}");
            assert!((0.0..=2.0).contains(&near.distance));
        }
    }
}

#[test]
fn a_row_read_back_and_added_to_another_graph_does_not_change() {
    let options = options(Metric::Cosine, Quantization::Bf16);
    let (first, second) = (Hnsw::new(&options).unwrap(), Hnsw::new(&options).unwrap());
    for seed in 1..100u16 {
        let row = u32::from(seed) - 1;
        first.add(row, &vector(seed)).unwrap();
        let read = first.vector(row).unwrap();
        second.add(row, &read).unwrap();
        assert_eq!(second.vector(row).unwrap(), read);
    }
}

#[test]
fn under_cosine_i8_holds_the_codes_of_its_space() {
    let options = options(Metric::Cosine, Quantization::I8);
    let graph = Hnsw::new(&options).unwrap();
    let space = graph.space().unwrap();
    for seed in 1..100u16 {
        let row = u32::from(seed) - 1;
        graph.add(row, &vector(seed)).unwrap();
        let mut code = Vec::new();
        space.encode_row(&vector(seed), &mut code);
        assert_eq!(graph.code(row).unwrap(), code);
    }
    assert!(graph.code(99).is_err());
}

/// usearch's own I8 would make another direction of a vector whose components are not small.
#[test]
fn i8_finds_the_nearest_in_every_metric() {
    for metric in [Metric::Cosine, Metric::InnerProduct, Metric::L2] {
        let graph = Hnsw::new(&options(metric, Quantization::I8)).unwrap();
        for seed in 1..200u16 {
            graph.add(u32::from(seed) - 1, &vector(seed)).unwrap();
        }
        for asked in [3, 55, 120].map(vector) {
            let query = Query::new(metric, &asked);
            let nearest = (1..200u16)
                .map(|seed| query.distance(&vector(seed)))
                .fold(f32::INFINITY, f32::min);
            let found = graph.search(&asked, 10, None).unwrap();
            let best = vector(u16::try_from(found[0].row).unwrap() + 1);
            assert_eq!(query.distance(&best), nearest, "{metric:?}");
        }
    }
}

#[test]
fn its_size_may_be_asked_while_rows_are_added() {
    let graph = Hnsw::new(&Options {
        dim: Dim::try_from(2).unwrap(),
        metric: Metric::L2,
        parameters: IndexParameters::default(),
        threads: 2,
    })
    .unwrap();
    let done = AtomicBool::new(false);
    let empty = graph.bytes();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut last = (0, 0);
            while !done.load(Ordering::Acquire) {
                let now = (graph.rows(), graph.bytes());
                assert!(now.0 >= last.0 && now.1 >= last.1, "{last:?} {now:?}");
                last = now;
            }
        });
        for row in 0..10_000u16 {
            let vector = [f32::from(row % 100), f32::from(row / 100)];
            graph.add(row.into(), &vector).unwrap();
        }
        done.store(true, Ordering::Release);
        asking.join().unwrap();
    });
    assert_eq!(graph.rows(), 10_000);
    assert!(graph.bytes() > empty);
}
