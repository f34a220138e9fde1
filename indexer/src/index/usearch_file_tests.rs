//! Tests of reading usearch's form: against bytes written by hand, against usearch itself, and
//! against damage.

use proptest::prelude::*;
use shoal_schemas::{Dim, IndexParameters, Metric, Quantization};

use super::ParseError;
use crate::index::{
    VectorIndex,
    adjacency::{Adjacency, NONE},
    hnsw::{Hnsw, Options},
};

/// Three rows, the second of which is on level 1; places for two neighbours, one above.
fn by_hand() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(2u32.to_le_bytes());
    bytes.extend([1, 2, 3, 4, 5, 6]);
    bytes.extend(b"usearch");
    bytes.extend([0; 57]);
    for number in [3u64, 1, 2, 1, 1] {
        bytes.extend(number.to_le_bytes());
    }
    for level in [0i16, 1, 0] {
        bytes.extend(level.to_le_bytes());
    }
    let nodes: [(i16, &[&[u32]]); 3] = [
        (0, &[&[1, 1, 7]]),
        (1, &[&[2, 0, 2], &[0, 9]]),
        (0, &[&[1, 1, 8]]),
    ];
    for (key, (level, lists)) in (0u64..).zip(nodes) {
        bytes.extend(key.to_le_bytes());
        bytes.extend(level.to_le_bytes());
        for number in lists.iter().flat_map(|list| list.iter()) {
            bytes.extend(number.to_le_bytes());
        }
    }
    bytes
}

fn serialized(rows: u16) -> Vec<u8> {
    let graph = Hnsw::new(&Options {
        dim: Dim::try_from(2).unwrap(),
        metric: Metric::L2,
        parameters: IndexParameters {
            m: 4,
            quantization: Quantization::F32,
            ..IndexParameters::default()
        },
        threads: 1,
    })
    .unwrap();
    for row in 0..rows {
        let vector = [f32::from(row % 17), f32::from(row / 17)];
        graph.add(row.into(), &vector).unwrap();
    }
    graph.serialized().unwrap()
}

fn ids_are_rows(adjacency: &Adjacency) -> bool {
    (0..adjacency.rows()).all(|row| {
        let mut levels = 0..=adjacency.top_level();
        levels.all(|level| {
            let neighbours = adjacency.neighbours(row, level);
            neighbours.iter().all(|to| *to < adjacency.rows())
        })
    })
}

#[test]
fn bytes_written_by_hand_are_read_as_meant() {
    let read = Adjacency::from_usearch(&by_hand(), 3).unwrap();
    assert_eq!((read.rows(), read.entry(), read.top_level()), (3, 1, 1));
    assert_eq!(read.degrees(), (2, 1));
    assert_eq!(read.neighbours(0, 0), [1]);
    assert_eq!(read.neighbours(1, 0), [0, 2]);
    assert_eq!(read.neighbours(2, 0), [1]);
    assert_eq!(read.neighbours(1, 1), [0u32; 0]);
    assert_eq!([0, 1, 2].map(|row| read.level(row)), [0, 1, 0]);
    assert_eq!(read.base, [1, NONE, 0, 2, 1, NONE]);
}

#[test]
fn a_graph_of_usearch_has_every_row_with_neighbours_and_one_component_to_walk() {
    let read = Adjacency::from_usearch(&serialized(500), 500).unwrap();
    assert_eq!(read.rows(), 500);
    assert!(read.top_level() > 0);
    assert_eq!(read.level(read.entry()), read.top_level());
    assert!(ids_are_rows(&read));
    let mut reached = vec![false; 500];
    let mut next = vec![read.entry()];
    while let Some(row) = next.pop() {
        if !std::mem::replace(&mut reached[usize::try_from(row).unwrap()], true) {
            next.extend(read.neighbours(row, 0));
        }
    }
    assert!(reached.iter().all(|reached| *reached));
}

#[test]
fn an_empty_graph_is_read_as_one() {
    let read = Adjacency::from_usearch(&serialized(0), 0).unwrap();
    assert_eq!((read.rows(), read.top_level()), (0, 0));
}

#[test]
fn rows_that_are_no_nodes_have_no_edges_and_the_others_keep_theirs() {
    let mut bytes = by_hand();
    // The keys of the second and the third node.
    bytes[146] = 3;
    bytes[176] = 4;
    let read = Adjacency::from_usearch(&bytes, 6).unwrap();
    assert_eq!((read.rows(), read.entry(), read.top_level()), (6, 3, 1));
    assert_eq!(
        [0, 1, 2, 3, 4, 5].map(|row| read.level(row)),
        [0, 0, 0, 1, 0, 0]
    );
    assert_eq!(read.neighbours(0, 0), [3]);
    assert_eq!(read.neighbours(3, 0), [0, 4]);
    assert_eq!(read.neighbours(4, 0), [3]);
    for row in [1, 2, 5] {
        assert_eq!(read.neighbours(row, 0), [0u32; 0]);
    }
    let refused = Adjacency::from_usearch(&bytes, 4).unwrap_err();
    let is_key = matches!(
        refused,
        ParseError::Number {
            what: "key of a node",
            found: 4
        }
    );
    assert!(is_key, "{refused}");
}

#[test]
fn what_is_cut_short_is_refused_wherever_it_is_cut() {
    for whole in [by_hand(), serialized(40)] {
        for length in 0..whole.len() {
            let refused = Adjacency::from_usearch(&whole[..length], 40).unwrap_err();
            assert!(matches!(refused, ParseError::Short { .. }), "{refused}");
        }
    }
}

#[test]
fn numbers_that_cannot_be_are_named() {
    let with = |at: usize, byte: u8| {
        let mut bytes = by_hand();
        bytes[at] = byte;
        Adjacency::from_usearch(&bytes, 3).unwrap_err()
    };
    assert_eq!(with(14, b'x'), ParseError::Magic { at: 14 });
    for (at, byte, what) in [
        (78, 4, "number of nodes"),
        (86, 0, "places above level 0"),
        (95, 9, "places at level 0"),
        (102, 2, "highest level"),
        (110, 3, "entry node"),
        (110, 0, "highest level"),
        (119, 0x80, "level of a node"),
        (124, 1, "key of a node"),
        (134, 3, "neighbours of a node"),
        (138, 3, "neighbour of a node"),
    ] {
        let refused = with(at, byte);
        let named = matches!(refused, ParseError::Number { what: named, .. } if named == what);
        assert!(named, "byte {at}: {refused}");
    }
}

proptest! {
    #[test]
    fn damage_is_refused_or_leaves_edges_between_rows(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = serialized(60);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
            if let Ok(read) = Adjacency::from_usearch(bytes, 60) {
                prop_assert!(ids_are_rows(&read));
            }
        }
    }
}
