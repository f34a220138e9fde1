//! Tests of the graph that takes rows while it is searched.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use shoal_schemas::{Dim, IndexKind, IndexParameters, Metric, Quantization};

use super::{Graph, LoadError, Options};
use crate::index::{
    distance::Query,
    packed::{
        self, Accept, Builder,
        tests::{METRICS, QUANTIZATIONS, vectors},
    },
};

fn options(dim: u32, metric: Metric, quantization: Quantization) -> Options {
    Options {
        dim: Dim::try_from(dim).unwrap(),
        metric,
        parameters: IndexParameters {
            quantization: Some(quantization),
            ..IndexParameters::default()
        },
    }
}

fn stored(graph: &Graph) -> Vec<u8> {
    let mut bytes = Vec::new();
    graph.write(&mut bytes).unwrap();
    bytes
}

#[test]
fn it_finds_what_a_scan_finds_in_every_metric_and_quantization_also_after_a_restart() {
    for metric in METRICS {
        for quantization in QUANTIZATIONS {
            finds_what_a_scan_finds(&options(24, metric, quantization));
        }
    }
}

fn finds_what_a_scan_finds(options: &Options) {
    let rows = vectors(options.dim, 1500);
    let graph = Graph::new(options);
    // Every third number is passed over.
    let key = |row: u32| row + row / 2;
    for (row, vector) in (0u32..).zip(&rows) {
        graph.add(key(row), vector);
    }
    let loaded = Graph::load(&stored(&graph), options).unwrap();
    for graph in [&graph, &loaded] {
        assert_eq!(graph.rows(), 1500);
        let (mut found, mut wanted) = (0, 0);
        for asked in rows.iter().step_by(30) {
            let exact = Query::new(options.metric, asked);
            let mut best: Vec<(f32, u32)> = (0u32..)
                .zip(&rows)
                .map(|(row, vector)| (exact.distance(vector), key(row)))
                .collect();
            best.sort_by(|a, b| a.0.total_cmp(&b.0));
            let code = graph.space().encode_query(asked);
            let near = graph.search(&code, 96, 20, None).near;
            assert!(near.is_sorted_by_key(|near| near.distance));
            for near in &near {
                let distance = graph.distance_to(&code, near.row);
                assert_eq!(distance, Some(near.distance), "row {}", near.row);
            }
            let is_found = |key: &u32| near.iter().any(|near| near.row == *key);
            found += best[..10].iter().filter(|(_, key)| is_found(key)).count();
            wanted += 10;
        }
        // With so few components half a byte of each says little.
        let least = match options.parameters.quantization {
            Some(Quantization::I4) => 80,
            _ => 97,
        };
        assert!(
            found * 100 >= wanted * least,
            "{options:?}: {found} of {wanted}"
        );
        let query = graph.space().encode_query(&rows[0]);
        assert_eq!(graph.distance_to(&query, 2), None, "it was passed over");
        assert_eq!(graph.distance_to(&query, key(1500)), None);
    }
}

#[test]
fn its_edges_are_those_of_a_graph_that_is_built_at_once() {
    let options = options(24, Metric::Cosine, Quantization::I8);
    let rows = vectors(options.dim, 2000);
    let graph = Graph::new(&options);
    let mut builder = Builder::new(packed::Options {
        space: graph.space().clone(),
        parameters: options.parameters,
        rows: 2000,
    });
    for (row, vector) in (0u32..).zip(&rows) {
        graph.add(row, vector);
        let mut code = Vec::new();
        let bias = graph.space().encode_row(vector, &mut code);
        builder.insert(&code, bias);
        assert_eq!(graph.code(row).unwrap(), code);
    }
    assert!(graph.adjacency(2000) == *builder.adjacency());
    let loaded = Graph::load(&stored(&graph), &options).unwrap();
    assert!(loaded.adjacency(2000) == *builder.adjacency());
    assert!(graph.mend(&mut || Ok::<_, Infallible>(true)).unwrap());
    let mended = builder.finish(&mut || Ok::<_, Infallible>(true)).unwrap();
    assert!(graph.adjacency(2000) == mended.unwrap().edges);
}

#[test]
fn rows_that_were_passed_over_have_no_edges_and_answers_hold_accepted_rows_only() {
    let options = options(24, Metric::L2, Quantization::I8);
    let rows = vectors(options.dim, 600);
    let graph = Graph::new(&options);
    for (row, vector) in (0u32..).zip(&rows) {
        graph.add(2 * row + 1, vector);
    }
    let edges = graph.adjacency(1200);
    assert_eq!(edges.rows(), 1200);
    for row in 0..1200 {
        let neighbours = edges.neighbours(row, 0);
        assert_eq!(neighbours.is_empty(), row % 2 == 0, "row {row}");
        assert!(neighbours.iter().all(|to| to % 2 == 1));
    }
    let takes = |row: u32| row % 10 == 1;
    let accept = Accept {
        takes: &takes,
        max_distances: usize::MAX,
    };
    let query = graph.space().encode_query(&rows[7]);
    let near = graph.search(&query, 50, 20, Some(accept)).near;
    assert_eq!(near.len(), 20);
    assert!(near.iter().all(|near| takes(near.row)));
    let mut stage = graph.set_out(query, 30, true);
    graph.go_on(&mut stage, 30);
    let gone_on = graph.go_on_among(stage, 50, 20, accept).near;
    assert_eq!(gone_on, near);
}

#[test]
fn without_edges_its_rows_are_measured_one_by_one_also_after_a_restart() {
    for metric in METRICS {
        let mut options = options(24, metric, Quantization::F32);
        options.parameters = options.parameters.of_kind(IndexKind::Flat);
        let graph = Graph::new(&options);
        assert!(!graph.has_edges());
        // More than a page, and every third number is passed over.
        let rows = vectors(options.dim, 1500);
        let key = |row: u32| row + row / 2;
        for (row, vector) in (0u32..).zip(&rows) {
            graph.add(key(row), vector);
        }
        assert_eq!(graph.mend(&mut || Ok::<_, Infallible>(true)), Ok(true));
        let loaded = Graph::load(&stored(&graph), &options).unwrap();
        assert_eq!(stored(&loaded), stored(&graph));
        assert!(
            Graph::load(
                &stored(&graph),
                &self::options(24, metric, Quantization::F32)
            )
            .is_err()
        );
        assert_eq!(graph.adjacency(2250).degrees(), (0, 0));
        for graph in [&graph, &loaded] {
            let query = graph.space().encode_query(&rows[7]);
            let far = |row: u32| graph.distance_to(&query, key(row)).unwrap();
            let exact = Query::new(metric, &rows[7]);
            for (row, vector) in (0u32..).zip(&rows) {
                let off = (far(row) - exact.distance(vector)).abs();
                assert!(off < 1e-2, "{metric:?} row {row}: {off}");
            }
            assert_eq!(graph.distance_to(&query, 2), None);
        }
    }
}

#[test]
fn a_search_beside_additions_finds_what_had_come_before() {
    for (metric, quantization) in [
        (Metric::Cosine, Quantization::I8),
        (Metric::L2, Quantization::F16),
    ] {
        searches_beside_additions(&options(24, metric, quantization));
    }
}

fn searches_beside_additions(options: &Options) {
    let key = |row: u32| match options.metric {
        Metric::L2 => 2 * row,
        _ => row,
    };
    let rows = vectors(options.dim, 4000);
    let graph = Graph::new(options);
    for (row, vector) in (0u32..).zip(&rows[..1000]) {
        graph.add(key(row), vector);
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let searching = scope.spawn(|| {
            let (mut searches, mut missed) = (0, 0);
            let mut size = (0, 0);
            while !done.load(Ordering::Acquire) || searches < 200 {
                let row = searches * 37 % 1000;
                let query = graph.space().encode_query(&rows[row]);
                let wanted = key(u32::try_from(row).unwrap());
                let near = graph.search(&query, 64, 10, None).near;
                assert!(near.is_sorted_by_key(|near| near.distance));
                missed += usize::from(near.iter().all(|near| near.row != wanted));
                let mut stage = graph.set_out(query, 64, false);
                graph.go_on(&mut stage, usize::MAX);
                let keys = stage.near().map(|near| graph.key(near.row));
                missed += usize::from(!keys.into_iter().any(|key| key == wanted));
                stage.end();
                searches += 1;
                let now = (graph.rows(), graph.bytes());
                assert!(now.0 >= size.0 && now.1 >= size.1, "{size:?} {now:?}");
                size = now;
            }
            (searches, missed)
        });
        for (row, vector) in (1000u32..).zip(&rows[1000..]) {
            graph.add(key(row), vector);
        }
        done.store(true, Ordering::Release);
        let (searches, missed) = searching.join().unwrap();
        assert!(missed * 50 <= searches, "{missed} of {searches}");
    });
}

#[test]
fn what_is_stored_is_refused_if_it_is_cut_short_or_of_another_kind() {
    let made = options(24, Metric::Cosine, Quantization::I8);
    let graph = Graph::new(&made);
    for (row, vector) in (0u32..).zip(&vectors(made.dim, 100)) {
        graph.add(row, vector);
    }
    let bytes = stored(&graph);
    let load = |bytes: &[u8], options: &Options| Graph::load(bytes, options).err().unwrap();
    let cut = &bytes[..bytes.len() - 1];
    assert!(matches!(load(cut, &made), LoadError::Keys { .. }));
    assert!(matches!(load(&bytes[..200], &made), LoadError::Open(_)));
    for other in [
        options(24, Metric::L2, Quantization::I8),
        options(24, Metric::Cosine, Quantization::F16),
        Options {
            parameters: IndexParameters {
                m: 12,
                ..made.parameters
            },
            ..made
        },
    ] {
        assert!(matches!(load(&bytes, &other), LoadError::Options));
    }
}

#[test]
fn an_empty_graph_is_searched_mended_and_stored() {
    let options = options(24, Metric::Cosine, Quantization::I8);
    let graph = Graph::new(&options);
    let query = graph.space().encode_query(&vectors(options.dim, 1)[0]);
    assert!(graph.search(&query, 10, 10, None).near.is_empty());
    assert!(graph.mend(&mut || Ok::<_, Infallible>(true)).unwrap());
    assert_eq!(graph.adjacency(3).rows(), 3);
    let loaded = Graph::load(&stored(&graph), &options).unwrap();
    assert_eq!(loaded.rows(), 0);
    let mut stage = loaded.set_out(query, 10, true);
    loaded.go_on(&mut stage, 10);
    assert!(stage.is_exhausted());
    let accept = Accept {
        takes: &|_| true,
        max_distances: usize::MAX,
    };
    let walk = loaded.go_on_among(stage, 10, 10, accept);
    assert_eq!((walk.near, walk.distances), (Vec::new(), 0));
}
