//! HNSW by usearch: the only file that names it.
//!
//! usearch declares its index `Sync` and takes `&self` everywhere; that is a claim. What was
//! measured to hold: one thread adds while others search. `reserve`, `load` and `save` are kept
//! exclusive here by a lock; search and add share it. Its statistics are not asked while a thread
//! may add: `memory_usage` walks all nodes and runs into the one that is being made.
//!
//! The beam of a search is `max(expansion, count)`, and the expansion belongs to the index, so a
//! beam a query is had by a low expansion and asking for `beam` results.

use std::{
    path::Path,
    sync::{
        RwLock, RwLockReadGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use shoal_schemas::{Dim, IndexParameters, Metric, Quantization};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

use crate::index::{IndexError, Near, VectorIndex};

/// Room reserved first, in rows; doubled whenever it is used up.
const FIRST_CAPACITY: usize = 4096;

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
    threads: usize,
    /// Memory it holds, as its allocators say after each add.
    bytes: AtomicUsize,
}

impl Hnsw {
    /// An empty graph.
    ///
    /// # Errors
    /// [`IndexError::Backend`].
    pub fn new(options: &Options) -> Result<Self, IndexError> {
        let index = open(options)?;
        index
            .reserve_capacity_and_threads(FIRST_CAPACITY, options.threads)
            .map_err(|error| backend("reserve", &error))?;
        Ok(Self {
            bytes: AtomicUsize::new(allocated(&index)),
            index: RwLock::new(index),
            dim: options.dim.len(),
            threads: options.threads,
        })
    }

    /// Reads a graph that [`VectorIndex::save`] wrote. usearch checks no checksum: the caller has to.
    ///
    /// # Errors
    /// [`IndexError::Backend`] if the file is cut short or made with other options.
    pub fn load(path: &Path, options: &Options) -> Result<Self, IndexError> {
        let index = open(options)?;
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
        Ok(Self {
            bytes: AtomicUsize::new(allocated(&index)),
            index: RwLock::new(index),
            dim: options.dim.len(),
            threads: options.threads,
        })
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
        index
            .add(u64::from(row), vector)
            .map_err(|error| backend("add a row", &error))?;
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
        let index = self.shared();
        let matches = match accept {
            None => index.search(query, beam),
            Some(accept) => {
                index.filtered_search(query, beam, |key| u32::try_from(key).is_ok_and(accept))
            }
        }
        .map_err(|error| backend("search", &error))?;
        let rows = matches.keys.iter().zip(&matches.distances);
        Ok(rows
            .filter_map(|(key, distance)| {
                let row = u32::try_from(*key).ok()?;
                Some(Near {
                    row,
                    distance: *distance,
                })
            })
            .collect())
    }

    fn vector(&self, row: u32) -> Result<Vec<f32>, IndexError> {
        let mut vector = vec![0.0f32; self.dim];
        let found = self
            .shared()
            .get(u64::from(row), &mut vector)
            .map_err(|error| backend("read a row", &error))?;
        if found == 0 {
            return Err(IndexError::NoRow { row });
        }
        Ok(vector)
    }

    fn rows(&self) -> usize {
        self.shared().size()
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn save(&self, path: &Path) -> Result<(), IndexError> {
        self.shared()
            .save(&path.to_string_lossy())
            .map_err(|error| backend("save", &error))
    }
}

fn open(options: &Options) -> Result<Index, IndexError> {
    let options = IndexOptions {
        dimensions: options.dim.len(),
        metric: match options.metric {
            Metric::Cosine => MetricKind::Cos,
            Metric::InnerProduct => MetricKind::IP,
            Metric::L2 => MetricKind::L2sq,
        },
        quantization: match options.parameters.quantization {
            Quantization::F32 => ScalarKind::F32,
            Quantization::F16 => ScalarKind::F16,
            Quantization::Bf16 => ScalarKind::BF16,
            Quantization::I8 => ScalarKind::I8,
        },
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
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::atomic::{AtomicBool, Ordering};

    use shoal_schemas::{Dim, IndexParameters, Metric};

    use super::{Hnsw, Options};
    use crate::index::VectorIndex;

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
}
