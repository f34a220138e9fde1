//! How a segment keeps its vectors for the walk, and how distances come of that.
//!
//! A *code* is a row's vector in the segment's quantization. Under I8 and I4 it is rotated
//! (see [`Rotation`]) and divided by a step that is the same for the whole segment, so that a
//! distance is an inner product of small integers and one multiplication. Under cosine vectors are
//! made of length 1 first, and the step follows from the dimension; else it is fitted to the largest
//! component (see [`Extent`]). A query is bytes under both, with a step of its own: its code is never
//! clipped.
//!
//! Distances are approximate: an answer is re-scored with exact vectors.

use std::sync::Arc;

use shoal_runtime::ErrorKind;
use shoal_schemas::{Dim, Metric, Quantization};

use crate::index::{
    distance::{self, Query},
    kernel::{self, Brains, Bytes, Floats, Halves, Kernel, Nibbles},
    nibbles::{self, Asked},
    rotation::Rotation,
    target::ByteCode,
};

/// Codes of integers.
#[derive(Clone, Copy)]
struct Integers {
    /// Largest number in a code; the one below its negative is left out, so that a code has its
    /// negative.
    largest: f32,
    /// A rotated unit vector's components beyond this many standard deviations are clipped.
    ///
    /// Measured: recall falls on both sides of it.
    clip_deviations: f32,
}

const I8: Integers = Integers {
    largest: 127.0,
    clip_deviations: 4.5,
};
const I4: Integers = Integers {
    largest: 7.0,
    clip_deviations: 2.8,
};

/// Added to a small number it leaves the nearest integer in the lowest bits: 1.5 * 2^23.
const TO_INTEGER: f32 = 12_582_912.0;
/// Bytes of a space in a file's header.
pub const HEADER_BYTES: usize = 12;

/// What a segment's codes are made with.
#[derive(Clone, Debug)]
pub struct Space {
    dim: Dim,
    metric: Metric,
    quantization: Quantization,
    /// 1 unless codes are integers.
    step: f32,
    /// Present if codes are integers.
    rotation: Option<Arc<Rotation>>,
}

/// A query as a code, with all that a distance takes.
#[derive(Clone)]
pub struct QueryCode {
    components: Components,
    scale: Scale,
}

/// A query's code.
#[derive(Clone)]
enum Components {
    Nibbles(Nibbles),
    Bytes(Bytes),
    Halves(Halves),
    Brains(Brains),
    Floats(Floats),
}

/// What makes a distance of an inner product.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    offset: f32,
    factor: f32,
    /// What a distance cannot be below.
    least: f32,
}

/// Why a stored space does not read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpaceError {
    /// Dimension.
    #[error("stored dimension is {found}, allowed are 2 to 4096")]
    Dim {
        /// As stored.
        found: u32,
    },
    /// Metric or quantization.
    #[error("stored {field} has the unknown number {found}")]
    Unknown {
        /// Which.
        field: &'static str,
        /// As stored.
        found: u8,
    },
    /// Step.
    #[error("stored step is {found}, it has to be above 0")]
    Step {
        /// As stored.
        found: f32,
    },
}

impl SpaceError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

impl Space {
    /// The space of a quantization that needs no fitting; `None` for integers but under cosine.
    pub fn new(dim: Dim, metric: Metric, quantization: Quantization) -> Option<Self> {
        let needs_fit = integers(quantization).is_some() && metric != Metric::Cosine;
        (!needs_fit).then(|| Self::fit(dim, metric, quantization, 0.0))
    }

    /// The space whose step suits rotated components of up to `largest` in size; what needs no
    /// fitting does not look at it. [`Extent`] finds the largest.
    pub fn fit(dim: Dim, metric: Metric, quantization: Quantization, largest: f32) -> Self {
        let integers = integers(quantization);
        let step = match (integers, metric) {
            (None, _) => 1.0,
            (Some(integers), Metric::Cosine) => integers.step_of_units(dim),
            (Some(integers), Metric::InnerProduct | Metric::L2) => integers.step_for(largest),
        };
        Self {
            dim,
            metric,
            quantization,
            step,
            rotation: integers.map(|_| Arc::new(Rotation::new(dim.len()))),
        }
    }

    /// Components a vector.
    pub fn dim(&self) -> Dim {
        self.dim
    }

    /// The distance.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// What a code's components are.
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// What a code of integers is multiplied with; 1 for the others.
    pub fn step(&self) -> f32 {
        self.step
    }

    /// Whether a code of the other says the same in this one. Compaction keeps codes where it does, for ever:
    /// another way of coding has to be another space.
    pub fn is_same(&self, other: &Self) -> bool {
        self.to_header() == other.to_header()
    }

    /// Bytes of a code.
    pub fn code_bytes(&self) -> usize {
        (self.dim.len() * component_bits(self.quantization)).div_ceil(8)
    }

    /// Whether a row has a bias beside its code.
    pub fn has_bias(&self) -> bool {
        self.metric == Metric::L2
    }

    /// Appends the row's code to `out`, and gives its bias: the squared length of what the code
    /// says for L2, 0 for the others.
    pub fn encode_row(&self, vector: &[f32], out: &mut Vec<u8>) -> f32 {
        let components = self.placed(vector);
        let start = out.len();
        match self.quantization {
            Quantization::I4 => nibbles::push(&I4.codes(&components, self.step), out),
            Quantization::I8 => {
                let codes = I8.codes(&components, self.step);
                out.extend(codes.iter().map(|code| code.cast_unsigned()));
            }
            Quantization::F16 => kernel::push_f16(&components, out),
            Quantization::Bf16 => kernel::push_bf16(&components, out),
            Quantization::F32 => {
                out.extend(components.iter().flat_map(|one| one.to_le_bytes()));
            }
        }
        match self.metric {
            Metric::L2 => self.square(out.get(start..).unwrap_or_default()),
            Metric::Cosine | Metric::InnerProduct => 0.0,
        }
    }

    /// The query's code.
    pub fn encode_query(&self, vector: &[f32]) -> QueryCode {
        match integers(self.quantization) {
            Some(_) => self.query_of_bytes(&self.byte_code(vector)),
            None => {
                let mut code = Vec::with_capacity(self.code_bytes());
                self.encode_row(vector, &mut code);
                self.query_of_code(&code)
            }
        }
    }

    /// The query's code, of which the greater part may have been made for another graph already.
    pub fn encode(&self, query: &Query<'_>) -> QueryCode {
        match (query.target(), integers(self.quantization)) {
            (Some(target), Some(_)) => {
                self.query_of_bytes(target.code(|vector| self.byte_code(vector)))
            }
            _ => self.encode_query(query.components()),
        }
    }

    /// Nothing of it rests on this space's step.
    fn byte_code(&self, vector: &[f32]) -> ByteCode {
        let placed = self.placed(vector);
        let step = I8.step_for(largest_of(&placed));
        let codes = I8.codes(&placed, step);
        let square = square_of_codes(&codes) * step * step;
        ByteCode {
            codes,
            step,
            square,
        }
    }

    fn query_of_bytes(&self, code: &ByteCode) -> QueryCode {
        let components = match self.quantization {
            Quantization::I4 => Components::Nibbles(Nibbles(Asked::new(&code.codes))),
            _ => Components::Bytes(Bytes(code.codes.clone())),
        };
        QueryCode {
            components,
            scale: self.scale(code.square, code.step),
        }
    }

    /// A row's code as a query: what is near a row.
    pub fn query_of_code(&self, code: &[u8]) -> QueryCode {
        let components = match self.quantization {
            Quantization::I4 => Components::Nibbles(Nibbles(Asked::new(&self.integers_of(code)))),
            Quantization::I8 => Components::Bytes(Bytes(signed(code))),
            Quantization::F16 => Components::Halves(Halves::of_code(code)),
            Quantization::Bf16 => Components::Brains(Brains::of_code(code)),
            Quantization::F32 => Components::Floats(Floats(kernel::floats(code).collect())),
        };
        QueryCode {
            components,
            scale: self.scale(self.square(code), self.step),
        }
    }

    /// About the vector that a code was made of; of length 1 under cosine.
    pub fn decode(&self, code: &[u8]) -> Vec<f32> {
        match self.quantization {
            Quantization::I4 | Quantization::I8 => {
                let codes = self.integers_of(code);
                let rotated = codes.iter().map(|code| f32::from(*code) * self.step);
                let mut vector: Vec<f32> = rotated.collect();
                if let Some(rotation) = &self.rotation {
                    rotation.undo(&mut vector);
                }
                vector
            }
            Quantization::F16 => kernel::f16_components(code).collect(),
            Quantization::Bf16 => kernel::bf16_components(code).collect(),
            Quantization::F32 => kernel::floats(code).collect(),
        }
    }

    /// The space in a file's header.
    pub fn to_header(&self) -> [u8; HEADER_BYTES] {
        let metric = match self.metric {
            Metric::Cosine => 0,
            Metric::InnerProduct => 1,
            Metric::L2 => 2,
        };
        let quantization = match self.quantization {
            Quantization::F32 => 0,
            Quantization::F16 => 1,
            Quantization::Bf16 => 2,
            Quantization::I8 => 3,
            Quantization::I4 => 4,
        };
        let [a, b, c, d] = u32::from(self.dim).to_le_bytes();
        let [e, f, g, h] = self.step.to_le_bytes();
        [a, b, c, d, metric, quantization, 0, 0, e, f, g, h]
    }

    /// Reads what [`Space::to_header`] wrote.
    ///
    /// # Errors
    /// [`SpaceError`].
    pub fn from_header(header: &[u8; HEADER_BYTES]) -> Result<Self, SpaceError> {
        let [a, b, c, d, metric, quantization, _, _, e, f, g, h] = *header;
        let found = u32::from_le_bytes([a, b, c, d]);
        let dim = Dim::try_from(found).map_err(|_| SpaceError::Dim { found })?;
        let unknown = |field, found| SpaceError::Unknown { field, found };
        let metric = match metric {
            0 => Metric::Cosine,
            1 => Metric::InnerProduct,
            2 => Metric::L2,
            found => return Err(unknown("metric", found)),
        };
        let quantization = match quantization {
            0 => Quantization::F32,
            1 => Quantization::F16,
            2 => Quantization::Bf16,
            3 => Quantization::I8,
            4 => Quantization::I4,
            found => return Err(unknown("quantization", found)),
        };
        let step = f32::from_le_bytes([e, f, g, h]);
        if !(step.is_finite() && step > 0.0) {
            return Err(SpaceError::Step { found: step });
        }
        Ok(Self {
            step,
            ..Self::fit(dim, metric, quantization, 0.0)
        })
    }

    /// The numbers of a code of integers.
    fn integers_of(&self, code: &[u8]) -> Vec<i8> {
        match self.quantization {
            Quantization::I4 => {
                let mut codes: Vec<i8> = nibbles::components(code).collect();
                codes.truncate(self.dim.len());
                codes
            }
            _ => signed(code),
        }
    }

    /// The vector as its components are coded: of length 1 for cosine, rotated for integers.
    fn placed(&self, vector: &[f32]) -> Vec<f32> {
        debug_assert_eq!(vector.len(), self.dim.len());
        let mut placed = vector.to_vec();
        if self.metric == Metric::Cosine {
            scale_to_unit(&mut placed);
        }
        if let Some(rotation) = &self.rotation {
            rotation.apply(&mut placed);
        }
        placed
    }

    /// The squared length of what a code says.
    fn square(&self, code: &[u8]) -> f32 {
        let floats: Vec<f32> = match self.quantization {
            Quantization::I4 | Quantization::I8 => {
                return square_of_codes(&self.integers_of(code)) * self.step * self.step;
            }
            Quantization::F16 => kernel::f16_components(code).collect(),
            Quantization::Bf16 => kernel::bf16_components(code).collect(),
            Quantization::F32 => kernel::floats(code).collect(),
        };
        to_f32(distance::square(&floats))
    }

    /// What makes a distance of the inner product of two codes of rows; the biases of both are
    /// to be added up.
    pub(super) fn between(&self) -> Scale {
        self.scale(0.0, self.step)
    }

    fn scale(&self, square: f32, query_step: f32) -> Scale {
        let product = query_step * self.step;
        match self.metric {
            Metric::Cosine => Scale {
                offset: 1.0,
                factor: product,
                least: 0.0,
            },
            Metric::InnerProduct => Scale {
                offset: 1.0,
                factor: product,
                least: f32::NEG_INFINITY,
            },
            Metric::L2 => Scale {
                offset: square,
                factor: 2.0 * product,
                least: 0.0,
            },
        }
    }
}

/// Something to do with distances from a query, whatever its code is made of.
pub(super) trait Visit {
    /// What comes of it.
    type Output;

    /// Does it.
    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> Self::Output;
}

/// Distances from a query.
pub(super) struct Measure<'a, K> {
    pub(super) kernel: &'a K,
    pub(super) scale: Scale,
}

impl<K: Kernel> Measure<'_, K> {
    /// The distance, which rounding may leave a little below what it can be.
    #[inline(always)]
    pub(super) fn distance(&self, code: &[u8], bias: f32) -> f32 {
        self.scale.distance(self.kernel.dot(code), bias)
    }

    /// The distance, not below what it can be.
    #[inline(always)]
    pub(super) fn least(&self, distance: f32) -> f32 {
        distance.max(self.scale.least)
    }
}

impl QueryCode {
    /// Does something with distances, compiled for each kind of code.
    #[inline(always)]
    pub(super) fn visit<V: Visit>(&self, visit: V) -> V::Output {
        let scale = self.scale;
        match &self.components {
            Components::Nibbles(kernel) => visit.visit(&Measure { kernel, scale }),
            Components::Bytes(kernel) => visit.visit(&Measure { kernel, scale }),
            Components::Halves(kernel) => visit.visit(&Measure { kernel, scale }),
            Components::Brains(kernel) => visit.visit(&Measure { kernel, scale }),
            Components::Floats(kernel) => visit.visit(&Measure { kernel, scale }),
        }
    }

    /// About the distance to the row of a code and its bias, in the metric's own terms.
    #[inline]
    pub fn distance(&self, code: &[u8], bias: f32) -> f32 {
        struct Distance<'a>(&'a [u8], f32);
        impl Visit for Distance<'_> {
            type Output = f32;
            #[inline(always)]
            fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> f32 {
                measure.least(measure.distance(self.0, self.1))
            }
        }
        self.visit(Distance(code, bias))
    }

    /// A distance that rounding may have left a little below what it can be, not below that.
    pub(super) fn least(&self, distance: f32) -> f32 {
        distance.max(self.scale.least)
    }
}

impl Scale {
    #[inline(always)]
    pub(super) fn distance(self, dot: f32, bias: f32) -> f32 {
        self.offset + bias - self.factor * dot
    }
}

/// Finds the step for rows whose size is not known: look at each, then take the space.
#[derive(Clone, Debug)]
pub struct Extent {
    space: Space,
    largest: f32,
}

impl Extent {
    /// For rows of this kind, none seen yet.
    pub fn new(dim: Dim, metric: Metric, quantization: Quantization) -> Self {
        Self {
            space: Space::fit(dim, metric, quantization, 0.0),
            largest: 0.0,
        }
    }

    /// Whether there is anything to find: if not, rows need not be looked at.
    pub fn is_needed(&self) -> bool {
        integers(self.space.quantization).is_some() && self.space.metric != Metric::Cosine
    }

    /// Looks at a row.
    pub fn include(&mut self, vector: &[f32]) {
        if self.is_needed() {
            let placed = self.space.placed(vector);
            self.largest = self.largest.max(largest_of(&placed));
        }
    }

    /// The space for the rows looked at.
    pub fn space(&self) -> Space {
        let mut space = self.space.clone();
        if let Some(integers) = integers(space.quantization).filter(|_| self.is_needed()) {
            space.step = integers.step_for(self.largest);
        }
        space
    }
}

fn component_bits(quantization: Quantization) -> usize {
    match quantization {
        Quantization::F32 => 32,
        Quantization::F16 | Quantization::Bf16 => 16,
        Quantization::I8 => 8,
        Quantization::I4 => 4,
    }
}

/// What integers a quantization makes; none if its codes are floats.
fn integers(quantization: Quantization) -> Option<Integers> {
    match quantization {
        Quantization::I8 => Some(I8),
        Quantization::I4 => Some(I4),
        Quantization::F32 | Quantization::F16 | Quantization::Bf16 => None,
    }
}

impl Integers {
    /// The step for rotated vectors of length 1. No component is above that.
    fn step_of_units(self, dim: Dim) -> f32 {
        let dim = f32::from(u16::try_from(u32::from(dim)).unwrap_or(u16::MAX));
        self.step_for((self.clip_deviations / dim.sqrt()).min(1.0))
    }

    /// The step with which `largest` is the largest code.
    fn step_for(self, largest: f32) -> f32 {
        if largest == 0.0 {
            return 1.0;
        }
        (largest.min(f32::MAX) / self.largest).max(f32::MIN_POSITIVE)
    }

    /// Each component in steps, rounded to the nearest and clipped.
    fn codes(self, components: &[f32], step: f32) -> Vec<i8> {
        let per_step = step.recip();
        let codes = components.iter().map(|component| {
            let steps = (component * per_step).clamp(-self.largest, self.largest);
            // Without a call for each, as `round` would be.
            let [lowest, ..] = (steps + TO_INTEGER).to_bits().to_le_bytes();
            lowest.cast_signed()
        });
        codes.collect()
    }
}

fn largest_of(components: &[f32]) -> f32 {
    let sizes = components.iter().map(|component| component.abs());
    sizes.fold(0.0, f32::max)
}

fn signed(code: &[u8]) -> Vec<i8> {
    code.iter().map(|byte| byte.cast_signed()).collect()
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "rounding of what is approximate already"
)]
fn square_of_codes(codes: &[i8]) -> f32 {
    let squares = codes.iter().map(|code| i32::from(*code) * i32::from(*code));
    squares.sum::<i32>() as f32
}

/// Makes the length 1; all zeros stay.
fn scale_to_unit(vector: &mut [f32]) {
    let square = distance::square(vector);
    if square > 0.0 {
        let scale = square.sqrt().recip();
        for component in vector {
            *component = to_f32(f64::from(*component) * scale);
        }
    }
}

#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "to the nearest; what is too large becomes infinite"
)]
fn to_f32(number: f64) -> f32 {
    number as f32
}

#[cfg(test)]
#[path = "space_tests.rs"]
mod tests;
