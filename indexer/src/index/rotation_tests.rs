//! Tests of the rotation: that it is one, that it spreads, and that it stays what it is.

use proptest::prelude::*;

use super::Rotation;

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(x, y)| f64::from(*x) * f64::from(*y))
        .sum()
}

fn rotated(rotation: &Rotation, vector: &[f32]) -> Vec<f32> {
    let mut rotated = vector.to_vec();
    rotation.apply(&mut rotated);
    rotated
}

fn two_vectors() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    (2usize..=4096).prop_flat_map(|dim| {
        let vector = || prop::collection::vec(-100.0f32..100.0, dim);
        (vector(), vector())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn inner_products_and_lengths_stay((a, b) in two_vectors()) {
        let rotation = Rotation::new(a.len());
        let (ra, rb) = (rotated(&rotation, &a), rotated(&rotation, &b));
        let scale = (dot(&a, &a) * dot(&b, &b)).sqrt();
        prop_assert!((dot(&ra, &rb) - dot(&a, &b)).abs() <= 1e-5 * scale);
        prop_assert!((dot(&ra, &ra) - dot(&a, &a)).abs() <= 1e-5 * dot(&a, &a));
    }

    #[test]
    fn undoing_it_gives_the_vector_back((a, _) in two_vectors()) {
        let rotation = Rotation::new(a.len());
        let mut back = rotated(&rotation, &a);
        rotation.undo(&mut back);
        let size = a.iter().fold(0.0f32, |size, one| size.max(one.abs()));
        for (back, one) in back.iter().zip(&a) {
            prop_assert!((back - one).abs() <= 1e-4 * size);
        }
    }
}

/// Whatever component a vector has alone, no component has much more of it than an even share.
#[test]
fn a_single_component_is_spread_over_all() {
    for dim in [
        16, 24, 100, 255, 257, 300, 384, 511, 768, 1000, 1024, 1536, 3072, 4096,
    ] {
        let rotation = Rotation::new(dim);
        let share = f64::from(u32::try_from(dim).unwrap()).sqrt().recip();
        let mut worst = 0.0f64;
        for alone in (0..dim).step_by(1 + dim / 61) {
            let mut vector = vec![0.0; dim];
            vector[alone] = 1.0;
            rotation.apply(&mut vector);
            let largest = vector.iter().fold(0.0f32, |size, one| size.max(one.abs()));
            worst = worst.max(f64::from(largest) / share);
        }
        // Sums of random signs: a few standard deviations.
        assert!(worst < 5.5, "{worst:.2} times an even share of {dim}");
    }
}

/// Files hold rotated vectors: these numbers stand for ever. They were computed by another program
/// from the description at the head of `rotation.rs`.
#[test]
fn it_is_the_rotation_of_version_1() {
    let golden: [(usize, [u32; 4]); 4] = [
        (2, [0xc14f_fffe, 0xc248_0000, 0xc248_0000, 0x2af7_ffc2]),
        (7, [0x422c_6d28, 0xc22f_445c, 0x4204_bba4, 0x8662_6d4c]),
        (384, [0x4259_6b00, 0xc1dc_6c3f, 0xc25a_5ca0, 0x65c0_0557]),
        (4096, [0xc0df_8c02, 0x41b3_b300, 0xc225_ca80, 0xe3fb_3551]),
    ];
    for (dim, expected) in golden {
        let components = (0..dim).map(|at| f32::from(u8::try_from(at * 37 % 101).unwrap()) - 50.0);
        let vector = rotated(&Rotation::new(dim), &components.collect::<Vec<_>>());
        let hash = vector.iter().fold(0u32, |hash, one| {
            hash.wrapping_mul(31).wrapping_add(one.to_bits())
        });
        let ends = [vector[0], vector[dim / 2], vector[dim - 1]];
        let found = [
            ends[0].to_bits(),
            ends[1].to_bits(),
            ends[2].to_bits(),
            hash,
        ];
        assert_eq!(found, expected, "dim {dim}: {ends:?}, {found:#010x?}");
    }
}
