//! A fixed rotation that spreads every component over all of them.
//!
//! Embeddings have a few components many times larger than the rest, and one step for all would
//! give those the range and the rest the noise. After the rotation every component is a sum of
//! all, of about the same size, and a distance is what it was.
//!
//! Two rounds of: flip signs, butterfly the two halves, and a fast Walsh-Hadamard transform of the
//! first and of the last block whose length is the largest power of two, signs flipped before each.
//! The signs come from a fixed generator. Files hold rotated vectors: nothing here may ever give
//! another result, so even the order of additions stays.

use std::f32::consts::FRAC_1_SQRT_2;

/// Rounds: after two, a single component is spread evenly to within some percent at any dimension.
const ROUNDS: usize = 2;
/// Where the signs come from; part of the file format.
const SEED: u64 = 0x5348_4f41_4c00_0001;
/// Components that a transform does in registers.
const SMALL: usize = 16;

/// The rotation of vectors of one dimension.
#[derive(Clone, Debug)]
pub struct Rotation {
    dim: usize,
    /// The largest power of two that is not above `dim`.
    block: usize,
    rounds: Vec<Round>,
}

/// Factors of a round: signs, and what keeps lengths as they are.
#[derive(Clone, Debug)]
struct Round {
    halves: Vec<f32>,
    first: Vec<f32>,
    /// Empty if the first block is all of the vector.
    last: Vec<f32>,
}

impl Rotation {
    /// The rotation of vectors with `dim` components.
    pub fn new(dim: usize) -> Self {
        let block = match dim {
            0 => 0,
            _ => 1 << dim.ilog2(),
        };
        let mut signs = Signs(SEED);
        let rounds = std::iter::repeat_with(|| Round::new(dim, block, &mut signs));
        Self {
            dim,
            block,
            rounds: rounds.take(ROUNDS).collect(),
        }
    }

    /// Rotates in place. Only the first `dim` components, if there are more.
    pub fn apply(&self, vector: &mut [f32]) {
        debug_assert_eq!(vector.len(), self.dim);
        for round in &self.rounds {
            multiply(vector, &round.halves);
            butterfly_halves(vector);
            if let Some(first) = vector.get_mut(..self.block) {
                multiply(first, &round.first);
                hadamard(first);
            }
            if !round.last.is_empty()
                && let Some(last) = vector.get_mut(self.dim - self.block..)
            {
                multiply(last, &round.last);
                hadamard(last);
            }
        }
    }

    /// Rotates back in place.
    pub fn undo(&self, vector: &mut [f32]) {
        debug_assert_eq!(vector.len(), self.dim);
        // Each step is a symmetric matrix times a diagonal one, so its inverse is the other order.
        for round in self.rounds.iter().rev() {
            if !round.last.is_empty()
                && let Some(last) = vector.get_mut(self.dim - self.block..)
            {
                hadamard(last);
                multiply(last, &round.last);
            }
            if let Some(first) = vector.get_mut(..self.block) {
                hadamard(first);
                multiply(first, &round.first);
            }
            butterfly_halves(vector);
            multiply(vector, &round.halves);
        }
    }
}

impl Round {
    fn new(dim: usize, block: usize, signs: &mut Signs) -> Self {
        let paired = dim / 2 * 2;
        let halves = (0..dim).map(|at| {
            let keep = if at < paired { FRAC_1_SQRT_2 } else { 1.0 };
            signs.next() * keep
        });
        let halves = halves.collect();
        let keep = root_of_power_of_two(block).recip();
        let mut of_block = || (0..block).map(|_| signs.next() * keep).collect();
        let first = of_block();
        let last = if block == dim { Vec::new() } else { of_block() };
        Self {
            halves,
            first,
            last,
        }
    }
}

/// Square root without the platform's: exact where it can be, else one rounding.
fn root_of_power_of_two(block: usize) -> f32 {
    let mut root = 1.0;
    let mut power = 1;
    while power < block / 2 {
        power *= 4;
        root *= 2.0;
    }
    if power < block {
        root * std::f32::consts::SQRT_2
    } else {
        root
    }
}

/// Signs by splitmix64, one a bit.
struct Signs(u64);

impl Signs {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ (z >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
    }
}

fn multiply(vector: &mut [f32], factors: &[f32]) {
    for (component, factor) in vector.iter_mut().zip(factors) {
        *component *= factor;
    }
}

/// Sum and difference of each component of the first half and its fellow of the second.
fn butterfly_halves(vector: &mut [f32]) {
    let (first, second) = vector.split_at_mut(vector.len() / 2);
    butterfly(first, second);
}

fn butterfly(a: &mut [f32], b: &mut [f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (*a + *b, *a - *b);
    }
}

/// The transform of a power of two components, without its factor.
fn hadamard(vector: &mut [f32]) {
    let mut half = 1;
    if let (blocks, []) = vector.as_chunks_mut::<SMALL>() {
        for block in blocks {
            hadamard_small(block);
        }
        half = SMALL;
    }
    while half < vector.len() {
        for pair in vector.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            butterfly(a, b);
        }
        half *= 2;
    }
}

/// The same for sixteen, laid out as four rows so that rows, then columns, are added as vectors.
fn hadamard_small(block: &mut [f32; SMALL]) {
    let mut rows = [[0.0f32; 4]; 4];
    for (row, four) in rows.iter_mut().zip(block.as_chunks::<4>().0) {
        *row = *four;
    }
    let rows = transpose(add_rows(transpose(add_rows(rows))));
    for (four, row) in block.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
        *four = row;
    }
}

/// The transform of four, of each column.
fn add_rows([a, b, c, d]: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    let (ab, ab_less) = (add(a, b), subtract(a, b));
    let (cd, cd_less) = (add(c, d), subtract(c, d));
    [
        add(ab, cd),
        add(ab_less, cd_less),
        subtract(ab, cd),
        subtract(ab_less, cd_less),
    ]
}

fn add([a, b, c, d]: [f32; 4], [e, f, g, h]: [f32; 4]) -> [f32; 4] {
    [a + e, b + f, c + g, d + h]
}

fn subtract([a, b, c, d]: [f32; 4], [e, f, g, h]: [f32; 4]) -> [f32; 4] {
    [a - e, b - f, c - g, d - h]
}

fn transpose([a, b, c, d]: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    [
        [a[0], b[0], c[0], d[0]],
        [a[1], b[1], c[1], d[1]],
        [a[2], b[2], c[2], d[2]],
        [a[3], b[3], c[3], d[3]],
    ]
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
