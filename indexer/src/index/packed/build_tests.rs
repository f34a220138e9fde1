//! Tests of building: of rows one by one, on from a graph there is, and without some of its rows.

use std::convert::Infallible;

use proptest::prelude::*;
use shoal_schemas::{Dim, IndexParameters, Metric, Quantization};

use super::{Builder, Options};
use crate::index::{
    packed::tests::{METRICS, QUANTIZATIONS, space_of, vectors},
    packed::{Adopt, Attend, Graph, MENDED_BEAM},
    space::Space,
};

fn dim(dim: u32) -> Dim {
    Dim::try_from(dim).unwrap()
}

fn options(space: &Space) -> Options {
    Options {
        space: space.clone(),
        parameters: IndexParameters {
            m: 8,
            ef_construction: 60,
            ..IndexParameters::default()
        },
        // Too few: it has to move once.
        rows: 100,
    }
}

fn insert(builder: &mut Builder, rows: &[Vec<f32>]) {
    let space = builder.space.clone();
    for row in rows {
        let mut code = Vec::new();
        let bias = space.encode_row(row, &mut code);
        builder.insert(&code, bias);
    }
}

fn built(space: &Space, rows: &[Vec<f32>]) -> Builder {
    let mut builder = Builder::new(options(space));
    insert(&mut builder, rows);
    builder
}

fn packed(builder: &mut Builder) -> Graph<Vec<u8>> {
    let mut bytes = Vec::new();
    builder.write(&mut bytes).unwrap();
    Graph::open(bytes).unwrap()
}

fn adopted(
    space: &Space,
    graph: &Graph<Vec<u8>>,
    keep: impl Fn(u32) -> bool,
) -> (Builder, Vec<Option<u32>>) {
    let mut kept = 0u32..;
    let numbers = (0..graph.rows()).map(|row| keep(row).then(|| kept.next().unwrap()));
    let numbers: Vec<Option<u32>> = numbers.collect();
    let adopt = Adopt {
        graph,
        numbers: &numbers,
        code: |row, code: &mut Vec<u8>| {
            code.extend(graph.code(row).unwrap());
            Ok::<_, Infallible>(graph.bias(row))
        },
    };
    let builder = adopt.build(options(space), &mut || Ok(true)).unwrap();
    (builder.unwrap(), numbers)
}

/// Every list holds other rows of its level, each once; and a walk that stops nowhere sees all.
#[track_caller]
fn assert_sound(builder: &mut Builder) {
    let graph = packed(builder);
    let edges = builder.adjacency();
    for row in 0..edges.rows() {
        for level in 0..=edges.level(row) {
            let neighbours = edges.neighbours(row, level);
            let mut once = neighbours.to_vec();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), neighbours.len(), "row {row} has one twice");
            assert!(!once.contains(&row), "row {row} has itself");
            assert!(once.iter().all(|to| edges.level(*to) >= level));
        }
    }
    if edges.rows() > 0 {
        assert_eq!(edges.level(edges.entry()), edges.top_level());
    }
    let all = usize::try_from(edges.rows()).unwrap();
    let query = builder
        .space
        .encode_query(&vec![1.0; builder.space.dim().len()]);
    let seen = graph.search(&query, all, all, None).near.len();
    assert_eq!(seen, all, "rows that no walk comes to");
}

/// How many of the ten nearest a search finds, as a scan over the same codes has them, in percent.
fn recall(graph: &Graph<Vec<u8>>, queries: &[Vec<f32>]) -> usize {
    let (mut found, mut wanted) = (0, 0);
    for query in queries {
        let query = graph.space().encode_query(query);
        let mut all: Vec<f32> = (0..graph.rows())
            .map(|row| graph.distance_to(&query, row).unwrap())
            .collect();
        all.sort_by(f32::total_cmp);
        let tenth = all[9];
        let near = graph.search(&query, 64, 10, None).near;
        found += near.iter().filter(|near| near.distance <= tenth).count();
        wanted += 10;
    }
    found * 100 / wanted
}

#[test]
fn it_finds_what_a_scan_finds_in_every_metric_and_quantization() {
    let rows = vectors(dim(24), 1200);
    for metric in METRICS {
        for quantization in QUANTIZATIONS {
            let space = space_of(dim(24), metric, quantization, &rows);
            let mut builder = built(&space, &rows);
            let recall = recall(&packed(&mut builder), &rows[..60]);
            assert!(recall >= 97, "{metric:?} {quantization:?}: {recall}");
            assert_sound(&mut builder);
        }
    }
}

#[test]
fn a_row_in_few_lists_is_found_by_a_search_for_it() {
    let rows = vectors(dim(24), 3000);
    let space = space_of(dim(24), Metric::Cosine, Quantization::I8, &rows);
    let sparse = Options {
        parameters: IndexParameters {
            m: 3,
            ef_construction: 12,
            ..IndexParameters::default()
        },
        ..options(&space)
    };
    let mut builder = Builder::new(sparse);
    insert(&mut builder, &rows);
    let mut as_is = Vec::new();
    builder.write_as_is(&mut as_is).unwrap();
    let hidden = |graph: &Graph<Vec<u8>>| {
        let is_hidden = |row: &u32| {
            let query = graph.space().query_of_code(graph.code(*row).unwrap());
            let own = graph.distance_to(&query, *row).unwrap();
            let near = graph.search(&query, 64, 1, None).near;
            near.first().is_none_or(|near| near.distance > own)
        };
        (0..graph.rows()).filter(is_hidden).count()
    };
    let before = hidden(&Graph::open(as_is).unwrap());
    let after = hidden(&packed(&mut builder));
    // With six places a row one that is given away may hide a third.
    assert!(before > 100 && after * 4 <= before, "{after} of {before}");
}

#[test]
fn going_on_from_a_graph_makes_the_same_edges_as_one_go() {
    let rows = vectors(dim(16), 900);
    let space = Space::new(dim(16), Metric::Cosine, Quantization::I8).unwrap();
    let at_once = built(&space, &rows);
    let first = packed(&mut built(&space, &rows[..500]));
    let (mut builder, numbers) = adopted(&space, &first, |_| true);
    assert!(
        numbers
            .iter()
            .zip(0u32..)
            .all(|(new, old)| *new == Some(old))
    );
    insert(&mut builder, &rows[500..]);
    assert_eq!(builder.adjacency(), at_once.adjacency());
}

#[test]
fn rows_are_connected_in_any_order() {
    let rows = vectors(dim(16), 1200);
    let space = Space::new(dim(16), Metric::Cosine, Quantization::I8).unwrap();
    let rising = built(&space, &rows);
    // On from nothing, where row 0 is the first by the order below, and on from some.
    for adopted_rows in [0, 300] {
        let first = packed(&mut built(&space, &rows[..adopted_rows]));
        let mut builder = match adopted_rows {
            0 => Builder::new(options(&space)),
            _ => adopted(&space, &first, |_| true).0,
        };
        let start = builder.rows();
        for row in &rows[adopted_rows..] {
            let mut code = Vec::new();
            let bias = space.encode_row(row, &mut code);
            builder.push(&code, bias);
        }
        let mut others: Vec<u32> = (start..builder.rows()).collect();
        others.sort_by_key(|row| row.wrapping_mul(0x9e37_79b1));
        for row in others {
            builder.connect(row);
        }
        let levels = |builder: &Builder| -> Vec<Vec<u32>> {
            let upper = builder.adjacency().upper.iter();
            upper.map(|level| level.rows.clone()).collect()
        };
        assert_eq!(levels(&builder), levels(&rising));
        assert_sound(&mut builder);
        let recall = recall(&packed(&mut builder), &rows[..60]);
        assert!(recall >= 97, "{recall}");
    }
}

#[test]
fn a_graph_without_a_third_of_its_rows_finds_the_others() {
    let rows = vectors(dim(24), 1500);
    for metric in METRICS {
        let space = space_of(dim(24), metric, Quantization::I8, &rows);
        let graph = packed(&mut built(&space, &rows));
        let keep = |row: u32| !row.is_multiple_of(3) && row != graph.entry();
        let (mut builder, numbers) = adopted(&space, &graph, keep);
        let kept: Vec<u32> = (0..graph.rows()).filter(|row| keep(*row)).collect();
        assert_eq!(builder.rows(), u32::try_from(kept.len()).unwrap());
        let without = packed(&mut builder);
        for (new, old) in (0u32..).zip(&kept) {
            assert_eq!(numbers[usize::try_from(*old).unwrap()], Some(new));
            assert_eq!(without.code(new), graph.code(*old));
        }
        let recall = recall(&without, &rows[..60]);
        assert!(recall >= 95, "{metric:?}: {recall}");
    }
}

#[test]
fn rows_can_be_dropped_and_added_again_and_again() {
    let rows = vectors(dim(24), 1000);
    let space = Space::new(dim(24), Metric::Cosine, Quantization::I8).unwrap();
    let mut graph = packed(&mut built(&space, &rows));
    for cycle in 0..6u32 {
        let keep = |row: u32| !(row + cycle).is_multiple_of(4);
        let (mut builder, _) = adopted(&space, &graph, keep);
        let missing = rows.len() - usize::try_from(builder.rows()).unwrap();
        insert(&mut builder, &rows[..missing]);
        assert_sound(&mut builder);
        graph = packed(&mut builder);
    }
    let recall = recall(&graph, &rows[..60]);
    assert!(recall >= 97, "{recall}");
}

/// Rows that come later may be larger than a step allows: all are coded anew, the edges stay.
#[test]
fn edges_are_taken_over_into_another_space() {
    let small = vectors(dim(12), 400);
    let large: Vec<Vec<f32>> = small
        .iter()
        .map(|row| row.iter().map(|one| one * 9.0).collect())
        .collect();
    let space = space_of(dim(12), Metric::L2, Quantization::I8, &small);
    let graph = packed(&mut built(&space, &small));
    let wider = space_of(dim(12), Metric::L2, Quantization::I8, &large);
    let numbers: Vec<Option<u32>> = (0..graph.rows()).map(Some).collect();
    let adopt = Adopt {
        graph: &graph,
        numbers: &numbers,
        code: |row, code: &mut Vec<u8>| {
            let vector = &small[usize::try_from(row).unwrap()];
            Ok::<_, Infallible>(wider.encode_row(vector, code))
        },
    };
    let built = adopt.build(options(&wider), &mut || Ok(true)).unwrap();
    let mut builder = built.unwrap();
    insert(&mut builder, &large);
    let graph = packed(&mut builder);
    assert_eq!(graph.space().step(), wider.step());
    let recall = recall(&graph, &large[..60]);
    assert!(recall >= 97, "{recall}");
}

#[test]
fn taking_over_ends_when_it_is_told_to() {
    let rows = vectors(dim(8), 100);
    let space = Space::new(dim(8), Metric::Cosine, Quantization::I8).unwrap();
    let graph = packed(&mut built(&space, &rows));
    let numbers: Vec<Option<u32>> = (0..graph.rows()).map(Some).collect();
    let adopt = Adopt {
        graph: &graph,
        numbers: &numbers,
        code: |row, code: &mut Vec<u8>| {
            code.extend(graph.code(row).unwrap());
            Ok::<_, Infallible>(graph.bias(row))
        },
    };
    let mut left = 50;
    let mut meanwhile = || {
        left -= 1;
        Ok(left > 0)
    };
    assert!(
        adopt
            .build(options(&space), &mut meanwhile)
            .unwrap()
            .is_none()
    );
}

#[test]
fn few_rows_or_none_are_left() {
    let rows = vectors(dim(8), 300);
    let space = Space::new(dim(8), Metric::Cosine, Quantization::I8).unwrap();
    let graph = packed(&mut built(&space, &rows));
    for left in [0u32, 1, 2, 5] {
        let (mut builder, _) = adopted(&space, &graph, |row| row % 50 < 1 && row / 50 < left);
        assert_eq!(builder.rows(), left);
        assert_sound(&mut builder);
        insert(&mut builder, &rows[..40]);
        assert_sound(&mut builder);
    }
}

#[test]
fn the_row_that_walks_set_out_from_is_come_to_from_others_too() {
    // Under inner product a walk goes down from it to longer rows, whoever is looked for; and it was in the lists
    // of rows that are dropped alone.
    let kept = [
        8, 37, 58, 69, 74, 78, 84, 85, 91, 92, 97, 98, 102, 103, 106, 109, 113, 116, 117, 122, 123,
        125, 126, 128, 129, 130, 134, 136, 138, 140, 152, 154, 155, 157, 166, 170, 171, 173, 175,
        176, 178, 179, 181, 182, 185, 186, 195, 196, 197, 198, 199, 200, 201, 202, 203, 204, 205,
        206, 207, 208, 209, 210, 211, 212, 214, 215, 217, 218, 221, 222, 223, 224, 225, 228, 233,
        234, 236, 237, 238, 239, 243, 244, 247,
    ];
    let rows = vectors(dim(8), 250);
    let space = space_of(dim(8), Metric::InnerProduct, Quantization::I8, &rows);
    let graph = packed(&mut built(&space, &rows));
    let (mut builder, _) = adopted(&space, &graph, |row| kept.contains(&row));
    assert_sound(&mut builder);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whichever_rows_are_dropped_all_others_are_found(
        keep in prop::collection::vec(prop::bool::weighted(0.6), 250),
        metric in prop::sample::select(METRICS.to_vec()),
    ) {
        let rows = vectors(dim(8), 250);
        let space = space_of(dim(8), metric, Quantization::I8, &rows);
        let graph = packed(&mut built(&space, &rows));
        let (mut builder, _) = adopted(&space, &graph, |row| keep[usize::try_from(row).unwrap()]);
        assert_sound(&mut builder);
    }
}

#[test]
fn mending_leaves_short_rows_alone_that_longer_ones_are_nearer_to() {
    // Up to ten times as long as others in about the same direction.
    let rows = vectors(dim(8), 8000);
    let space = space_of(dim(8), Metric::InnerProduct, Quantization::I8, &rows);
    let builder = built(&space, &rows);
    let before = builder.adjacency().base.clone();
    let mended = builder.finish(&mut || Ok::<_, Infallible>(true)).unwrap();
    let mended = mended.unwrap().edges;
    let changed = before.iter().zip(&mended.base);
    let changed = changed.filter(|(before, after)| before != after).count();
    // Rows in nobody's list are led to all the same, 4.1 % of the places; short ones would add .9 %.
    assert!(changed * 22 < before.len(), "{changed} of {}", before.len());
}

/// Rows with the vectors they were made of.
struct Published<'a>(&'a [Vec<f32>]);

impl Attend for Published<'_> {
    type Error = Infallible;

    fn goes_on(&mut self) -> Result<bool, Infallible> {
        Ok(true)
    }

    fn vector(&mut self, row: u32, out: &mut Vec<f32>) -> Result<bool, Infallible> {
        out.clone_from(&self.0[usize::try_from(row).unwrap()]);
        Ok(true)
    }
}

#[test]
fn a_row_is_found_by_its_vector_where_it_was_looked_for_by_it() {
    // Of so few components that codes of half a byte say something quite different.
    let rows = vectors(dim(16), 4000);
    let space = space_of(dim(16), Metric::Cosine, Quantization::I4, &rows);
    let lost = |mend: &dyn Fn(&mut Builder)| {
        let mut builder = built(&space, &rows);
        mend(&mut builder);
        let mut bytes = Vec::new();
        builder.write_as_is(&mut bytes).unwrap();
        let graph = Graph::open(bytes).unwrap();
        let is_lost = |(row, vector): &(u32, &Vec<f32>)| {
            let query = space.encode_query(vector);
            let near = graph.search(&query, MENDED_BEAM, MENDED_BEAM, None).near;
            // Nor would one that comes to it have kept it.
            let own = graph.distance_to(&query, *row).unwrap();
            near.iter().all(|near| near.row != *row) && near.iter().any(|near| near.distance > own)
        };
        (0u32..).zip(&rows).filter(is_lost).count()
    };
    let by_codes = lost(&|builder| {
        builder.mend(&mut || Ok::<_, Infallible>(true)).unwrap();
    });
    let by_vectors = lost(&|builder| {
        builder.mend(&mut Published(&rows)).unwrap();
    });
    assert!(
        by_codes > 0 && by_vectors == 0,
        "{by_vectors} of {by_codes}"
    );
}
