//! HNSW by usearch: the only file that names it.
//!
//! usearch declares its index `Sync` and takes `&self` everywhere; that is a claim. What was
//! measured to hold: one thread adds while others search. `reserve`, `load` and `save` are kept
//! exclusive here by a lock; search and add share it. Its statistics are not asked while a thread
//! may add: `memory_usage` walks all nodes and runs into the one that is being made.
//!
//! The beam of a search is `max(expansion, count)`, and the expansion belongs to the index, so a
//! beam a query is had by a low expansion and asking for `beam` results.
//!
//! Cosine over bf16 is walked as the inner product of unit vectors (see [`unit`]): usearch's own
//! cosine sums up both lengths anew at every step. Cosine over I8 is walked as the inner product
//! of our own codes (see [`Space`]): usearch's own cut to a byte leaves most of it unused. For
//! other metrics the step of a code is not known before all rows are: I8 grows as bf16 there.

use std::{
    path::Path,
    sync::{
        RwLock, RwLockReadGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use shoal_schemas::{Dim, IndexParameters, Metric, Quantization};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind, VectorType};

use crate::index::{
    IndexError, Near, VectorIndex,
    adjacency::Adjacency,
    distance::{Query, square},
    space::Space,
};

/// Room reserved first, in rows; doubled whenever it is used up.
const FIRST_CAPACITY: usize = 4096;
/// A vector whose squared length is nearer to 1 than this counts as a unit vector.
const ABOUT_UNIT: f64 = 1.0 / 256.0;

/// What a graph is made with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Components a vector.
    pub dim: Dim,
    /// Its distance.
    pub metric: Metric,
    /// Edges, beams, quantization.
    pub parameters: IndexParameters,
    /// How many threads may be in the index at a time.
    pub threads: usize,
}

/// A navigable small-world graph over one segment's rows.
pub struct Hnsw {
    index: RwLock<Index>,
    dim: usize,
    metric: Metric,
    threads: usize,
    /// Memory it holds, as its allocators say after each add.
    bytes: AtomicUsize,
    held: Held,
}

/// What the graph holds of a vector.
enum Held {
    /// The vector, as usearch rounds it.
    Vectors,
    /// The vector at length 1.
    Units(Box<Units>),
    /// Its code.
    Codes(Box<Space>),
}

impl Held {
    fn new(options: &Options) -> Self {
        match (options.metric, options.parameters.quantization) {
            // Measured for bf16 only: 20 to 35 % more adds, 30 % less time a search.
            (Metric::Cosine, Quantization::Bf16) => Self::Units(Box::default()),
            (Metric::Cosine, quantization @ Quantization::I8) => {
                let space = Space::new(options.dim, Metric::Cosine, quantization);
                Self::Codes(Box::new(
                    space.expect("under cosine no step has to be fitted"),
                ))
            }
            _ => Self::Vectors,
        }
    }

    fn metric(&self, metric: Metric) -> MetricKind {
        match (self, metric) {
            (Self::Vectors, Metric::Cosine) => MetricKind::Cos,
            (_, Metric::L2) => MetricKind::L2sq,
            (_, Metric::Cosine | Metric::InnerProduct) => MetricKind::IP,
        }
    }

    fn scalar(&self, quantization: Quantization) -> ScalarKind {
        match (self, quantization) {
            (_, Quantization::F32) => ScalarKind::F32,
            (_, Quantization::F16) => ScalarKind::F16,
            (Self::Codes(_), Quantization::I8) => ScalarKind::I8,
            (_, Quantization::Bf16 | Quantization::I8) => ScalarKind::BF16,
        }
    }
}

impl Hnsw {
    /// An empty graph.
    ///
    /// # Errors
    /// [`IndexError::Backend`].
    pub fn new(options: &Options) -> Result<Self, IndexError> {
        let held = Held::new(options);
        let index = open(options, &held)?;
        index
            .reserve_capacity_and_threads(FIRST_CAPACITY, options.threads)
            .map_err(|error| backend("reserve", &error))?;
        Ok(Self {
            bytes: AtomicUsize::new(allocated(&index)),
            index: RwLock::new(index),
            dim: options.dim.len(),
            metric: options.metric,
            threads: options.threads,
            held,
        })
    }

    /// Reads a graph that [`VectorIndex::save`] wrote. usearch checks no checksum: the caller has to.
    ///
    /// # Errors
    /// [`IndexError::Backend`] if the file is cut short or made with other options.
    pub fn load(path: &Path, options: &Options) -> Result<Self, IndexError> {
        let held = Held::new(options);
        let index = open(options, &held)?;
        index
            .load(&path.to_string_lossy())
            .map_err(|error| backend("load", &error))?;
        if index.dimensions() != options.dim.len() {
            return Err(IndexError::Backend {
                action: "load",
                detail: format!(
                    "file has {} dimensions, the collection {}",
                    index.dimensions(),
                    options.dim
                ),
            });
        }
        let capacity = index.size().next_power_of_two().max(FIRST_CAPACITY);
        // A loaded index has no room and no thread contexts of its own.
        index
            .reserve_capacity_and_threads(capacity, options.threads)
            .map_err(|error| backend("reserve", &error))?;
        let loaded = Self {
            bytes: AtomicUsize::new(allocated(&index)),
            index: RwLock::new(index),
            dim: options.dim.len(),
            metric: options.metric,
            threads: options.threads,
            held,
        };
        if let Held::Units(units) = &loaded.held {
            let (mut row, mut found) = (0u32, 0usize);
            while found < loaded.rows() {
                match loaded.vector(row) {
                    Ok(vector) => {
                        units.put(row, length(&vector));
                        found += 1;
                    }
                    // It was passed over.
                    Err(IndexError::NoRow { .. }) if row < u32::MAX => {}
                    Err(error) => return Err(error),
                }
                row = row.saturating_add(1);
            }
        }
        Ok(loaded)
    }

    pub(super) fn serialized(&self) -> Result<Vec<u8>, IndexError> {
        let index = self.shared();
        let mut serialized = vec![0u8; index.serialized_length()];
        index
            .save_to_buffer(&mut serialized)
            .map_err(|error| backend("save", &error))?;
        Ok(serialized)
    }

    /// How its rows are coded, if it holds codes.
    pub fn space(&self) -> Option<&Space> {
        match &self.held {
            Held::Codes(space) => Some(space),
            Held::Vectors | Held::Units(_) => None,
        }
    }

    /// A row's code, of [`Self::space`].
    ///
    /// # Errors
    /// [`IndexError::NoRow`], also if it holds no codes.
    pub fn code(&self, row: u32) -> Result<Vec<u8>, IndexError> {
        let Held::Codes(space) = &self.held else {
            return Err(IndexError::NoRow { row });
        };
        let mut code = vec![0i8; space.code_bytes()];
        self.get(row, &mut code)?;
        Ok(code.into_iter().map(i8::cast_unsigned).collect())
    }

    fn get<T: VectorType>(&self, row: u32, vector: &mut [T]) -> Result<(), IndexError> {
        let found = self.shared().get(u64::from(row), vector);
        match found.map_err(|error| backend("read a row", &error))? {
            0 => Err(IndexError::NoRow { row }),
            _ => Ok(()),
        }
    }

    /// As usearch answers: its own distances, nearest first.
    fn near<T: VectorType>(
        &self,
        query: &[T],
        beam: usize,
        accept: Option<&dyn Fn(u32) -> bool>,
    ) -> Result<Vec<Near>, IndexError> {
        let index = self.shared();
        let matches = match accept {
            None => index.search(query, beam),
            Some(accept) => {
                index.filtered_search(query, beam, |key| u32::try_from(key).is_ok_and(accept))
            }
        }
        .map_err(|error| backend("search", &error))?;
        let rows = matches.keys.iter().zip(&matches.distances);
        let near = rows.filter_map(|(key, distance)| {
            let row = u32::try_from(*key).ok()?;
            Some(Near {
                row,
                distance: *distance,
            })
        });
        Ok(near.collect())
    }

    fn shared(&self) -> RwLockReadGuard<'_, Index> {
        self.index
            .read()
            .expect("nothing panics while it holds the graph exclusively")
    }
}

impl VectorIndex for Hnsw {
    fn add(&self, row: u32, vector: &[f32]) -> Result<(), IndexError> {
        debug_assert_eq!(vector.len(), self.dim);
        let full = {
            let index = self.shared();
            index.size() >= index.capacity()
        };
        if full {
            let index = self
                .index
                .write()
                .expect("nothing panics while it holds the graph exclusively");
            let wanted = index.capacity().max(FIRST_CAPACITY).saturating_mul(2);
            index
                .reserve_capacity_and_threads(wanted, self.threads)
                .map_err(|error| backend("reserve", &error))?;
        }
        let index = self.shared();
        let added = match &self.held {
            Held::Vectors => index.add(u64::from(row), vector),
            Held::Units(units) => {
                let vector = unit(vector);
                // Before the row: a search that meets it needs the length.
                units.put(row, length(&vector));
                index.add(u64::from(row), &vector)
            }
            Held::Codes(space) => {
                let mut code = Vec::with_capacity(space.code_bytes());
                space.encode_row(vector, &mut code);
                index.add::<i8>(u64::from(row), bytemuck::cast_slice(&code))
            }
        };
        added.map_err(|error| backend("add a row", &error))?;
        // By the one thread that adds, so that nothing is allocated meanwhile.
        self.bytes.store(allocated(&index), Ordering::Relaxed);
        Ok(())
    }

    fn search(
        &self,
        query: &[f32],
        beam: usize,
        accept: Option<&dyn Fn(u32) -> bool>,
    ) -> Result<Vec<Near>, IndexError> {
        debug_assert_eq!(query.len(), self.dim);
        match &self.held {
            Held::Vectors => self.near(query, beam, accept),
            Held::Units(units) => {
                let query = unit(query);
                let mut near = self.near(&query, beam, accept)?;
                units.correct(&mut near, length(&query));
                Ok(near)
            }
            Held::Codes(space) => {
                let query = space.encode_query(query);
                let mut near = self.near(query.bytes(), beam, accept)?;
                for one in &mut near {
                    one.distance = query.distance_of_product(1.0 - one.distance);
                }
                Ok(near)
            }
        }
    }

    fn measure(&self, query: &[f32], rows: &[u32]) -> Result<Vec<Near>, IndexError> {
        let mut near = Vec::with_capacity(rows.len());
        if let Held::Codes(space) = &self.held {
            let query = space.encode_query(query);
            let mut code = vec![0i8; space.code_bytes()];
            for row in rows {
                self.get(*row, &mut code)?;
                let distance = query.distance(bytemuck::cast_slice(&code), 0.0);
                near.push(Near {
                    row: *row,
                    distance,
                });
            }
            return Ok(near);
        }
        let query = Query::new(self.metric, query);
        let mut vector = vec![0.0f32; self.dim];
        for row in rows {
            self.get(*row, &mut vector)?;
            let distance = query.distance(&vector);
            near.push(Near {
                row: *row,
                distance,
            });
        }
        Ok(near)
    }

    fn vector(&self, row: u32) -> Result<Vec<f32>, IndexError> {
        if let Held::Codes(space) = &self.held {
            return Ok(space.decode(&self.code(row)?));
        }
        let mut vector = vec![0.0f32; self.dim];
        self.get(row, &mut vector)?;
        Ok(vector)
    }

    fn rows(&self) -> usize {
        self.shared().size()
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn adjacency(&self, rows: u32) -> Result<Adjacency, IndexError> {
        Ok(Adjacency::from_usearch(&self.serialized()?, rows)?)
    }

    fn save(&self, path: &Path) -> Result<(), IndexError> {
        let index = self.shared();
        index
            .save(&path.to_string_lossy())
            .map_err(|error| backend("save", &error))?;
        // usearch closes the file without asking whether its last block found room.
        let expected = u64::try_from(index.serialized_length()).unwrap_or(u64::MAX);
        let written = path.metadata().map_err(|error| backend("save", &error))?;
        if written.len() == expected {
            return Ok(());
        }
        let detail = format!(
            "file has {} bytes, {expected} were to be written; the disk is full",
            written.len()
        );
        Err(backend("save", &detail))
    }
}

/// Lengths of the rows' vectors, by row: nearly 1, what rounding has left of it.
#[derive(Default)]
struct Units {
    lengths: boxcar::Vec<f32>,
}

impl Units {
    /// Keeps a row's length. Rows come in rising order, and some are passed over.
    fn put(&self, row: u32, length: f32) {
        let at = usize::try_from(row).unwrap_or(usize::MAX);
        debug_assert!(self.lengths.count() <= at, "rows come in order");
        while self.lengths.count() < at {
            self.lengths.push(1.0);
        }
        self.lengths.push(length);
    }

    /// Makes cosine distances of inner products: the walk may be off by rounding, an answer not.
    fn correct(&self, near: &mut [Near], query_length: f32) {
        for one in near.iter_mut() {
            let row = usize::try_from(one.row).unwrap_or(usize::MAX);
            let length = self.lengths.get(row).copied().unwrap_or(1.0);
            let cosine = (1.0 - one.distance) / (length * query_length);
            one.distance = (1.0 - cosine).clamp(0.0, 2.0);
        }
        near.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    }
}

/// The vector scaled to length 1 and rounded to what bf16 holds, so that the graph's own copy is
/// the same to the last bit.
///
/// One of about that length is only rounded: a row read back and added to another graph does not
/// change.
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a component of a unit vector fits every float"
)]
fn unit(vector: &[f32]) -> Vec<f32> {
    let square = square(vector);
    let is_unit = (square - 1.0).abs() <= ABOUT_UNIT || square == 0.0;
    let scale = if is_unit { 1.0 } else { square.sqrt().recip() };
    let scaled = vector
        .iter()
        .map(|component| (f64::from(*component) * scale) as f32);
    scaled.map(round_to_bf16).collect()
}

/// The nearest number whose lower half is zero, to even: bf16 in the form of an f32.
fn round_to_bf16(component: f32) -> f32 {
    let bits = component.to_bits();
    let up = 0x7fff + ((bits >> 16) & 1);
    f32::from_bits(bits.wrapping_add(up) & 0xffff_0000)
}

#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "about 1, by `unit`"
)]
fn length(unit: &[f32]) -> f32 {
    square(unit).sqrt() as f32
}

fn open(options: &Options, held: &Held) -> Result<Index, IndexError> {
    let options = IndexOptions {
        dimensions: options.dim.len(),
        metric: held.metric(options.metric),
        quantization: held.scalar(options.parameters.quantization),
        connectivity: usize::from(options.parameters.m),
        expansion_add: usize::from(options.parameters.ef_construction),
        // See the file's text: the beam comes from `count`.
        expansion_search: 1,
        multi: false,
    };
    Index::new(&options).map_err(|error| backend("open", &error))
}

/// Bytes that the graph's and the vectors' allocators hold.
fn allocated(index: &Index) -> usize {
    let stats = index.memory_stats();
    stats
        .graph_allocated
        .saturating_add(stats.vectors_allocated)
}

fn backend(action: &'static str, error: &dyn std::fmt::Display) -> IndexError {
    IndexError::Backend {
        action,
        detail: error.to_string(),
    }
}

#[cfg(test)]
#[path = "hnsw_tests.rs"]
mod tests;
