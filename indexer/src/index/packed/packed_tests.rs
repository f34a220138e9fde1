//! Tests of the packed graph as a whole: from rows, through edges, to answers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use shoal_schemas::{Dim, IndexParameters, Metric, Quantization};

use super::{Accept, Aligned, Graph, OpenError, WriteError, write};
use crate::index::{
    Near,
    adjacency::Adjacency,
    distance::Query,
    live,
    space::{Extent, Space},
};

pub(in crate::index) const METRICS: [Metric; 3] =
    [Metric::Cosine, Metric::InnerProduct, Metric::L2];
pub(in crate::index) const QUANTIZATIONS: [Quantization; 5] = [
    Quantization::F32,
    Quantization::F16,
    Quantization::Bf16,
    Quantization::I8,
    Quantization::I4,
];

fn dim(dim: u32) -> Dim {
    Dim::try_from(dim).unwrap()
}

/// Vectors around a few centres, some ten times as long as others.
pub(in crate::index) fn vectors(dim: Dim, count: u16) -> Vec<Vec<f32>> {
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
    };
    let centres: Vec<Vec<f32>> = (0..16)
        .map(|_| (0..dim.len()).map(|_| random()).collect())
        .collect();
    let rows = (0..count).map(|row| {
        let centre = &centres[usize::from(row) % centres.len()];
        let length = 1.0 + f32::from(row % 10);
        let row = centre.iter().map(|one| (one + 0.5 * random()) * length);
        row.collect()
    });
    rows.collect()
}

/// Rows to be found, however far they are.
fn among(takes: &dyn Fn(u32) -> bool) -> Option<Accept<'_>> {
    Some(Accept {
        takes,
        max_distances: usize::MAX,
    })
}

fn adjacency(dim: Dim, metric: Metric, quantization: Quantization, rows: &[Vec<f32>]) -> Adjacency {
    let graph = live::Graph::new(&live::Options {
        dim,
        metric,
        parameters: IndexParameters {
            quantization: Some(quantization),
            ..IndexParameters::default()
        },
    });
    for (number, row) in (0u32..).zip(rows) {
        graph.add(number, row);
    }
    graph.adjacency(u32::try_from(rows.len()).unwrap())
}

pub(super) fn space_of(
    dim: Dim,
    metric: Metric,
    quantization: Quantization,
    rows: &[Vec<f32>],
) -> Space {
    let mut extent = Extent::new(dim, metric, quantization);
    for row in rows {
        extent.include(row);
    }
    extent.space()
}

fn packed(space: &Space, adjacency: &Adjacency, rows: &[Vec<f32>]) -> Vec<u8> {
    let codes = rows.iter().map(|row| {
        let mut code = Vec::new();
        let bias = space.encode_row(row, &mut code);
        (code, bias)
    });
    let mut bytes = Vec::new();
    let length = write(&mut bytes, space, adjacency, codes).unwrap();
    assert_eq!(length, bytes.len());
    bytes
}

fn open(bytes: Vec<u8>) -> Graph<Vec<u8>> {
    Graph::open(bytes).unwrap()
}

#[test]
fn it_finds_what_a_scan_finds_in_every_metric_and_quantization() {
    let dim = dim(40);
    let rows = vectors(dim, 2000);
    for metric in METRICS {
        for quantization in QUANTIZATIONS {
            let space = space_of(dim, metric, quantization, &rows);
            let edges = adjacency(dim, metric, quantization, &rows);
            let graph = open(packed(&space, &edges, &rows));
            // With so few components half a byte of each says little, above all of short vectors.
            let (most_off, least) = match (quantization, metric) {
                (Quantization::I4, Metric::Cosine) => (0.3, 80),
                (Quantization::I4, _) => (0.3, 30),
                _ => (0.02, 97),
            };
            let (mut found, mut wanted) = (0, 0);
            for asked in rows.iter().step_by(40) {
                let exact = Query::new(metric, asked);
                let mut best: Vec<(f32, usize)> = rows
                    .iter()
                    .enumerate()
                    .map(|(at, row)| (exact.distance(row), at))
                    .collect();
                best.sort_by(|a, b| a.0.total_cmp(&b.0));
                let walk = graph.search(&space.encode_query(asked), 96, 20, None);
                assert_eq!(walk.near.len(), 20);
                assert!(walk.near.is_sorted_by_key(|near| near.distance));
                assert!(walk.distances < rows.len());
                let near: Vec<usize> = walk
                    .near
                    .iter()
                    .map(|near| usize::try_from(near.row).unwrap())
                    .collect();
                found += best[..10]
                    .iter()
                    .filter(|(_, row)| near.contains(row))
                    .count();
                wanted += 10;
                let spread = best[rows.len() - 1].0 - best[0].0;
                for near in walk.near {
                    let exact = exact.distance(&rows[usize::try_from(near.row).unwrap()]);
                    let off = (near.distance - exact).abs();
                    assert!(
                        off < most_off * spread,
                        "{metric:?} {quantization:?}: {off} of {exact}"
                    );
                }
            }
            assert!(
                found * 100 >= wanted * least,
                "{metric:?} {quantization:?}: {found} of {wanted}"
            );
        }
    }
}

#[test]
fn a_filtered_search_answers_with_the_nearest_accepted_rows() {
    let dim = dim(24);
    let rows = vectors(dim, 1500);
    let space = Space::new(dim, Metric::Cosine, Quantization::I8).unwrap();
    let edges = adjacency(dim, Metric::Cosine, Quantization::I8, &rows);
    let graph = open(packed(&space, &edges, &rows));
    let query = space.encode_query(&rows[11]);
    let accept = |row: u32| row % 3 == 1;
    let walk = graph.search(&query, 64, 10, among(&accept));
    let mut all: Vec<(f32, u32)> = (0..graph.rows())
        .filter(|row| accept(*row))
        .map(|row| (graph.distance_to(&query, row).unwrap(), row))
        .collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let distances: Vec<f32> = walk.near.iter().map(|near| near.distance).collect();
    let expected: Vec<f32> = all[..10].iter().map(|(distance, _)| *distance).collect();
    assert_eq!(distances, expected);
    assert!(walk.near.iter().all(|near| accept(near.row)));
}

#[test]
fn a_walk_goes_on_through_rows_that_are_not_accepted_until_it_meets_those_that_are() {
    let dim = dim(24);
    let rows = vectors(dim, 3000);
    let space = Space::new(dim, Metric::Cosine, Quantization::I8).unwrap();
    let edges = adjacency(dim, Metric::Cosine, Quantization::I8, &rows);
    let graph = open(packed(&space, &edges, &rows));
    let query = space.encode_query(&rows[16]);
    // One centre in 16, and not the one that the query is of.
    let accept = |row: u32| row % 16 == 9;
    let mut all: Vec<f32> = (0..graph.rows())
        .filter(|row| accept(*row))
        .map(|row| graph.distance_to(&query, row).unwrap())
        .collect();
    all.sort_by(f32::total_cmp);
    let walk = graph.search(&query, 64, 10, among(&accept));
    let found: Vec<f32> = walk.near.iter().map(|near| near.distance).collect();
    assert_eq!(found, all[..10]);
    assert!(!walk.is_cut);
    let bound = walk.distances / 2;
    let cut = Accept {
        takes: &accept,
        max_distances: bound,
    };
    let cut = graph.search(&query, 64, 10, Some(cut));
    assert!(cut.is_cut);
    // A row's neighbours are compared together.
    assert!((bound..bound + 100).contains(&cut.distances));
}

#[test]
fn a_walk_goes_on_among_some_rows_from_all_that_it_has_met() {
    let rows = vectors(dim(24), 3000);
    let space = space_of(dim(24), Metric::L2, Quantization::I8, &rows);
    let edges = adjacency(dim(24), Metric::L2, Quantization::I8, &rows);
    let graph = open(packed(&space, &edges, &rows));
    let (mut found, mut wanted) = (0, 0);
    for row in rows.iter().step_by(70) {
        let query = space.encode_query(row);
        let mut order: Vec<Near> = (0..graph.rows())
            .filter_map(|row| {
                let distance = graph.distance_to(&query, row)?;
                Some(Near { row, distance })
            })
            .collect();
        order.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        // Of the nearest, two beams or more, only one in thirty.
        let gone: Vec<u32> = order[..150].iter().map(|near| near.row).collect();
        let accept = |row: u32| row.is_multiple_of(30) || !gone.contains(&row);
        // What another walk of this thread has left is nothing of it.
        let half: Vec<f32> = row.iter().map(|one| one / 2.0).collect();
        let mut other = graph.set_out(space.encode_query(&half), 64, true);
        graph.go_on(&mut other, 64);
        other.end();
        let mut stage = graph.set_out(query.clone(), 64, true);
        graph.go_on(&mut stage, 64);
        assert!(stage.is_exhausted());
        let first = stage.distances();
        let walk = graph.go_on_among(stage, 48, 40, among(&accept).unwrap());
        assert!(
            walk.near
                .iter()
                .all(|near| accept(near.row) && order.contains(near))
        );
        let anew = graph.search(&query, 48, 40, among(&accept));
        assert!(
            first < walk.distances && walk.distances < anew.distances + first / 2,
            "{first} and then {} in all, {} anew",
            walk.distances,
            anew.distances
        );
        let mut cut = graph.set_out(query, 64, true);
        graph.go_on(&mut cut, 64);
        let bound = Accept {
            takes: &accept,
            max_distances: first + 1,
        };
        let cut = graph.go_on_among(cut, 48, 40, bound);
        // A row's neighbours are compared together.
        assert!(cut.is_cut && (first + 1..first + 100).contains(&cut.distances));
        let nearest = order.iter().filter(|near| accept(near.row)).take(40);
        found += nearest.filter(|near| walk.near.contains(near)).count();
        wanted += 40;
    }
    assert!(found * 100 >= wanted * 97, "{found} of {wanted}");
}

#[test]
fn it_keeps_the_edges_as_they_were() {
    let dim = dim(8);
    let rows = vectors(dim, 700);
    let space = Space::new(dim, Metric::L2, Quantization::F32).unwrap();
    let edges = adjacency(dim, Metric::L2, Quantization::F32, &rows);
    let graph = open(packed(&space, &edges, &rows));
    assert!(edges.top_level() > 0);
    for row in 0..graph.rows() {
        assert_eq!(graph.level(row), edges.level(row));
        for level in 0..=edges.top_level() + 1 {
            assert_eq!(graph.neighbours(row, level), edges.neighbours(row, level));
        }
        let decoded = space.decode(graph.code(row).unwrap());
        assert_eq!(&decoded, &rows[usize::try_from(row).unwrap()]);
    }
    assert_eq!(graph.code(graph.rows()), None);
}

#[test]
fn a_graph_of_no_rows_or_one_is_searched_too() {
    let dim = dim(5);
    let space = Space::new(dim, Metric::Cosine, Quantization::I8).unwrap();
    for count in [0, 1, 2] {
        let rows = vectors(dim, count);
        let edges = adjacency(dim, Metric::Cosine, Quantization::I8, &rows);
        let graph = open(packed(&space, &edges, &rows));
        let query = space.encode_query(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        let found = graph.search(&query, 10, 10, None).near.len();
        assert_eq!(found, usize::from(count));
    }
}

#[test]
fn aligned_bytes_begin_at_a_multiple_of_64_and_are_a_copy() {
    for length in [0usize, 1, 63, 64, 1000] {
        let bytes: Vec<u8> = (0..=255u8).cycle().take(length).collect();
        let aligned = Aligned::copy_of(&bytes);
        assert_eq!(aligned.as_ref(), bytes);
        assert_eq!(aligned.as_ref().as_ptr().align_offset(64), 0);
    }
}

#[test]
fn codes_that_do_not_fit_the_edges_are_refused() {
    let dim = dim(4);
    let rows = vectors(dim, 3);
    let space = Space::new(dim, Metric::Cosine, Quantization::I8).unwrap();
    let edges = adjacency(dim, Metric::Cosine, Quantization::I8, &rows);
    let code = |bytes: usize| (vec![0u8; bytes], 0.0);
    let mut into = Vec::new();
    let refused = write(&mut into, &space, &edges, vec![code(4); 2]).unwrap_err();
    assert!(matches!(refused, WriteError::Rows { edges: 3, codes: 2 }));
    let refused = write(&mut into, &space, &edges, vec![code(4); 4]).unwrap_err();
    assert!(matches!(refused, WriteError::Rows { edges: 3, codes: 4 }));
    let refused = write(&mut into, &space, &edges, vec![code(5); 3]).unwrap_err();
    assert!(matches!(
        refused,
        WriteError::Code {
            row: 0,
            found: 5,
            expected: 4
        }
    ));
}

#[test]
fn a_header_that_is_damaged_or_of_another_version_does_not_open() {
    let dim = dim(6);
    let rows = vectors(dim, 50);
    let space = Space::new(dim, Metric::L2, Quantization::Bf16).unwrap();
    let bytes = packed(
        &space,
        &adjacency(dim, Metric::L2, Quantization::Bf16, &rows),
        &rows,
    );
    for at in 12..super::header::BYTES {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        assert!(matches!(
            Graph::open(damaged),
            Err(OpenError::Checksum { .. })
        ));
    }
    let mut newer = bytes.clone();
    newer[8] = 9;
    assert_eq!(
        Graph::open(newer).err(),
        Some(OpenError::Version { found: 9 })
    );
    let mut other = bytes.clone();
    other[0] = 0;
    assert_eq!(Graph::open(other).err(), Some(OpenError::Magic));
    for length in 0..bytes.len() {
        let cut = bytes[..length].to_vec();
        assert!(matches!(Graph::open(cut), Err(OpenError::Length { .. })));
    }
}

proptest! {
    #[test]
    fn whatever_is_damaged_behind_the_header_a_search_ends_with_rows_that_are_there(
        seed in 0usize..1000,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..400),
        metric in prop::sample::select(METRICS.to_vec()),
    ) {
        let dim = dim(6);
        let rows = vectors(dim, 120);
        let space = space_of(dim, metric, Quantization::I8, &rows);
        let mut bytes = packed(&space, &adjacency(dim, metric, Quantization::I8, &rows), &rows);
        let body = bytes.len() - super::header::BYTES;
        for (at, byte) in damage {
            bytes[super::header::BYTES + at.index(body)] = byte;
        }
        let graph = open(bytes);
        let query = space.encode_query(&rows[seed % rows.len()]);
        let accept = |row: u32| row.is_multiple_of(2);
        let accepts = [None, among(&accept)];
        for accept in accepts {
            let near = graph.search(&query, 20, 10, accept).near;
            prop_assert!(near.iter().all(|near| near.row < graph.rows()));
        }
        for row in 0..graph.rows() {
            for level in 0..4 {
                prop_assert!(graph.neighbours(row, level).iter().all(|to| *to < graph.rows()));
            }
        }
    }
}

#[test]
fn a_walk_in_stages_ends_where_one_in_one_go_does() {
    let rows = vectors(dim(24), 1500);
    let space = space_of(dim(24), Metric::Cosine, Quantization::I8, &rows);
    let edges = adjacency(dim(24), Metric::Cosine, Quantization::I8, &rows);
    let graph = open(packed(&space, &edges, &rows));
    for row in rows.iter().step_by(50) {
        let query = space.encode_query(row);
        let whole = graph.search(&query, 48, 48, None);
        let mut stage = graph.set_out(query.clone(), 48, false);
        let mut places = 0;
        while !stage.is_exhausted() {
            places += 5;
            graph.go_on(&mut stage, places);
        }
        assert_eq!(stage.near().collect::<Vec<_>>(), whole.near);
        assert_eq!(stage.distances(), whole.distances);
        stage.end();

        let mut short = graph.set_out(query, 48, false);
        graph.go_on(&mut short, 24);
        assert!(short.places() >= 24 && !short.is_exhausted());
        assert!(short.distances() < whole.distances);
        let near: Vec<Near> = short.near().take(10).collect();
        let found = near.iter().filter(|near| whole.near[..10].contains(near));
        assert!(found.count() >= 8, "of the ten nearest");
    }
}
