//! Tests of codes and their distances.

use proptest::prelude::*;
use shoal_schemas::{Dim, Metric, Quantization};

use super::{Extent, HEADER_BYTES, Space, SpaceError};
use crate::index::{
    distance::Query,
    target::{ByteCode, Target},
};

const METRICS: [Metric; 3] = [Metric::Cosine, Metric::InnerProduct, Metric::L2];
const QUANTIZATIONS: [Quantization; 5] = [
    Quantization::F32,
    Quantization::F16,
    Quantization::Bf16,
    Quantization::I8,
    Quantization::I4,
];

/// How far a code may be off at worst, in small dimensions, as a part of a vector's length.
fn off_by(quantization: Quantization) -> f32 {
    match quantization {
        Quantization::I4 => 0.35,
        _ => 0.025,
    }
}

fn metric() -> impl Strategy<Value = Metric> {
    prop::sample::select(METRICS.to_vec())
}

fn quantization() -> impl Strategy<Value = Quantization> {
    prop::sample::select(QUANTIZATIONS.to_vec())
}

fn dim_of(vector: &[f32]) -> Dim {
    Dim::try_from(u32::try_from(vector.len()).unwrap()).unwrap()
}

fn fitted(metric: Metric, quantization: Quantization, rows: &[&[f32]]) -> Space {
    let mut extent = Extent::new(dim_of(rows[0]), metric, quantization);
    for row in rows {
        extent.include(row);
    }
    extent.space()
}

fn encoded(space: &Space, vector: &[f32]) -> (Vec<u8>, f32) {
    let mut code = Vec::new();
    let bias = space.encode_row(vector, &mut code);
    assert_eq!(code.len(), space.code_bytes());
    (code, bias)
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|one| one * one).sum::<f32>().sqrt()
}

fn two_vectors(
    component: impl Strategy<Value = f32> + Clone,
) -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    (2usize..700).prop_flat_map(move |dim| {
        let vector = || prop::collection::vec(component.clone(), dim);
        (vector(), vector())
    })
}

proptest! {
    #[test]
    fn a_distance_of_codes_is_about_the_exact_one(
        (a, b) in two_vectors(-8.0f32..8.0),
        metric in metric(),
        quantization in quantization(),
    ) {
        prop_assume!(length(&a) > 0.1 && length(&b) > 0.1);
        let space = fitted(metric, quantization, &[&a, &b]);
        let (code, bias) = encoded(&space, &a);
        let exact = Query::new(metric, &b).distance(&a);
        let lengths = match metric {
            Metric::Cosine => 1.0,
            Metric::InnerProduct => length(&a) * length(&b),
            Metric::L2 => (length(&a) + length(&b)).powi(2),
        };
        let as_query = space.encode_query(&b).distance(&code, bias);
        let as_code = space.query_of_code(&encoded(&space, &b).0).distance(&code, bias);
        for found in [as_query, as_code] {
            let most = off_by(quantization) * lengths;
            prop_assert!((found - exact).abs() < most, "{} for {}", found, exact);
        }
    }

    #[test]
    fn a_code_says_about_its_vector(
        (a, _) in two_vectors(-8.0f32..8.0),
        metric in metric(),
        quantization in quantization(),
    ) {
        prop_assume!(length(&a) > 0.1);
        let space = fitted(metric, quantization, &[&a]);
        let scale = if metric == Metric::Cosine { length(&a) } else { 1.0 };
        let decoded = space.decode(&encoded(&space, &a).0);
        let off: Vec<f32> = decoded.iter().zip(&a).map(|(x, y)| x * scale - y).collect();
        let most = 1.2 * off_by(quantization) * length(&a);
        prop_assert!(length(&off) < most, "{} of {}", length(&off), length(&a));
    }

    #[test]
    fn whatever_is_finite_has_a_code_and_distances(
        (a, b) in two_vectors(any::<f32>().prop_filter("finite", |one| one.is_finite())),
        metric in metric(),
        quantization in quantization(),
    ) {
        let space = fitted(metric, quantization, &[&a]);
        let (code, bias) = encoded(&space, &a);
        let query = space.encode_query(&b);
        query.distance(&code, bias);
        query.distance(&code[1..], bias);
        query.distance(&[], bias);
        prop_assert_eq!(space.decode(&code).len(), a.len());
    }

    #[test]
    fn a_header_reads_as_it_was_written(
        (a, _) in two_vectors(-8.0f32..8.0),
        metric in metric(),
        quantization in quantization(),
    ) {
        let space = fitted(metric, quantization, &[&a]);
        let read = Space::from_header(&space.to_header()).unwrap();
        prop_assert_eq!(read.to_header(), space.to_header());
        prop_assert_eq!(encoded(&read, &a), encoded(&space, &a));
    }
}

/// One component that is large in every row would take all of the range, and most of the others
/// would be lost. What every distance is off by alike does no harm.
#[test]
fn a_component_larger_than_all_others_hides_none_of_them() {
    let row = |seed: u16| -> Vec<f32> {
        let noise = |at: u16| f32::from(seed.wrapping_mul(at * 77 + 131) % 199) / 100.0 - 1.0;
        let mut row: Vec<f32> = (0..128).map(noise).collect();
        row[9] = 100.0;
        row
    };
    let rows: Vec<Vec<f32>> = (1..300).map(row).collect();
    let borrowed: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
    let space = fitted(Metric::L2, Quantization::I8, &borrowed);
    let asked = row(1234);
    let (exact, query) = (Query::new(Metric::L2, &asked), space.encode_query(&asked));
    let off: Vec<f32> = rows
        .iter()
        .map(|row| {
            let (code, bias) = encoded(&space, row);
            query.distance(&code, bias) - exact.distance(row)
        })
        .collect();
    let mean = |all: &mut dyn Iterator<Item = f32>| all.sum::<f32>() / 299.0;
    let distance = mean(&mut rows.iter().map(|row| exact.distance(row)));
    let alike = mean(&mut off.iter().copied());
    for off in off {
        let off = (off - alike).abs();
        assert!(
            off < 0.08 * distance,
            "{off} where the mean distance is {distance}"
        );
    }
}

#[test]
fn under_cosine_a_code_says_nothing_of_the_length() {
    let short = [0.5f32, -0.25, 1.0, 0.125];
    let long = short.map(|one| one * 1024.0);
    for quantization in QUANTIZATIONS {
        let space = Space::new(dim_of(&short), Metric::Cosine, quantization).unwrap();
        assert_eq!(encoded(&space, &short), encoded(&space, &long));
    }
}

#[test]
fn a_step_is_fitted_where_it_does_not_follow_from_the_dimension() {
    let dim = Dim::try_from(64).unwrap();
    for metric in METRICS {
        for quantization in QUANTIZATIONS {
            let is_integer = matches!(quantization, Quantization::I8 | Quantization::I4);
            let needs_fit = is_integer && metric != Metric::Cosine;
            assert_eq!(Space::new(dim, metric, quantization).is_none(), needs_fit);
            assert_eq!(
                Extent::new(dim, metric, quantization).is_needed(),
                needs_fit
            );
        }
    }
    let cosine = Space::new(dim, Metric::Cosine, Quantization::I8).unwrap();
    assert!((cosine.step() - 4.5 / 8.0 / 127.0).abs() < 1e-9);
    let small = Space::fit(dim, Metric::L2, Quantization::I8, 12.7);
    assert!((small.step() - 0.1).abs() < 1e-8);
    let coarse = Space::new(dim, Metric::Cosine, Quantization::I4).unwrap();
    assert!((coarse.step() - 2.8 / 8.0 / 7.0).abs() < 1e-9);
    // Rows of zeros alone have a space too.
    let zeros = fitted(Metric::L2, Quantization::I8, &[&[0.0; 64]]);
    assert_eq!(encoded(&zeros, &[0.0; 64]), (vec![0; 64], 0.0));
}

/// Files hold this: the bytes stand for ever. They were computed by another program.
#[test]
fn headers_and_codes_are_those_of_version_1() {
    let dim = Dim::try_from(5).unwrap();
    let space = Space::fit(dim, Metric::L2, Quantization::I8, 127.0);
    assert_eq!(
        space.to_header(),
        [5, 0, 0, 0, 2, 3, 0, 0, 0, 0, 0x80, 0x3f]
    );
    let vector = [1.0f32, -2.0, 30.0, 0.5, -4.25];
    let golden: [(Metric, Quantization, &[u8]); 4] = [
        (Metric::L2, Quantization::I8, &[7, 250, 255, 241, 231]),
        (Metric::Cosine, Quantization::I8, &[29, 231, 250, 192, 153]),
        (
            Metric::InnerProduct,
            Quantization::F16,
            &[0, 0x3c, 0, 0xc0, 0x80, 0x4f, 0, 0x38, 0x40, 0xc4],
        ),
        (
            Metric::InnerProduct,
            Quantization::Bf16,
            &[0x80, 0x3f, 0, 0xc0, 0xf0, 0x41, 0, 0x3f, 0x88, 0xc0],
        ),
    ];
    for (metric, quantization, expected) in golden {
        let space = Space::fit(dim, metric, quantization, 127.0);
        assert_eq!(
            encoded(&space, &vector).0,
            expected,
            "{metric:?} {quantization:?}"
        );
    }
    // By hand from the first of them: 1, -1, 0, -3 and -5 steps of 5, and 8 more.
    let space = Space::fit(dim, Metric::L2, Quantization::I4, 35.0);
    assert_eq!(space.to_header()[5], 4);
    assert_eq!(encoded(&space, &vector).0, [0x79, 0x58, 0x83]);
}

/// What recall rests on: with many components what rounding adds is small.
#[test]
fn codes_of_half_a_byte_are_near_the_exact_distance_where_there_are_many_components() {
    let row = |seed: u16| -> Vec<f32> {
        let noise = |at: u16| f32::from(seed.wrapping_mul(at * 77 + 131) % 199) / 100.0 - 1.0;
        (0..384).map(noise).collect()
    };
    let rows: Vec<Vec<f32>> = (1..200).map(row).collect();
    let dim = dim_of(&rows[0]);
    let space = Space::new(dim, Metric::Cosine, Quantization::I4).unwrap();
    assert_eq!(space.code_bytes(), 192);
    let asked = row(1234);
    let (exact, query) = (
        Query::new(Metric::Cosine, &asked),
        space.encode_query(&asked),
    );
    let squares = rows.iter().map(|row| {
        let (code, bias) = encoded(&space, row);
        (query.distance(&code, bias) - exact.distance(row)).powi(2)
    });
    let off = (squares.sum::<f32>() / 199.0).sqrt();
    assert!(off < 0.012, "{off}");
}

#[test]
fn a_header_that_cannot_be_is_refused() {
    let space = Space::fit(Dim::try_from(9).unwrap(), Metric::L2, Quantization::I8, 1.0);
    let with = |at: usize, byte: u8| {
        let mut header: [u8; HEADER_BYTES] = space.to_header();
        header[at] = byte;
        Space::from_header(&header).map(|_| ())
    };
    assert_eq!(with(0, 1), Err(SpaceError::Dim { found: 1 }));
    let unknown = |field, found| Err(SpaceError::Unknown { field, found });
    assert_eq!(with(4, 3), unknown("metric", 3));
    assert_eq!(with(5, 5), unknown("quantization", 5));
    assert!(matches!(with(11, 0xbc), Err(SpaceError::Step { .. })));
}

#[test]
fn a_query_is_coded_once_for_all_graphs_and_measures_the_same() {
    let dim = Dim::try_from(24).unwrap();
    let vector = |seed: u16| -> Vec<f32> {
        let part = |at: u16| f32::from((at + 3) * (seed + 7) % 31) - 15.0;
        (0..24).map(part).collect()
    };
    for metric in [Metric::Cosine, Metric::InnerProduct, Metric::L2] {
        let target = Target::new(vector(5));
        let query = Query::of(metric, &target);
        let integers = [Quantization::I8, Quantization::I4];
        let cases = integers.map(|quantization| [(20.0, quantization), (90.0, quantization)]);
        for (largest, quantization) in cases.into_iter().flatten() {
            let space = Space::fit(dim, metric, quantization, largest);
            let mut row = Vec::new();
            let bias = space.encode_row(&vector(2), &mut row);
            let alone = space.encode_query(&vector(5)).distance(&row, bias);
            let shared = space.encode(&query).distance(&row, bias);
            assert_eq!(shared.to_bits(), alone.to_bits(), "{metric:?}");
            let plainly = space.encode(&query).distance_plainly(&row, bias);
            assert_eq!(plainly.map(f32::to_bits), Some(alone.to_bits()));
        }
        let other = |_: &[f32]| -> ByteCode { panic!("it has been made") };
        assert_eq!(target.code(other).codes.len(), 24);
    }
}
