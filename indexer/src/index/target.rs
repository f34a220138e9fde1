//! A vector that is looked for, with its code of one byte a component, which is made once.
//!
//! To rotate a vector and to round it costs the same however small a graph is. What comes of it is the
//! same for every graph of a collection, since a query has a step of its own: so all segments of all
//! shards that one request asks share it.

use std::sync::OnceLock;

/// A query's code, before it is measured against a graph.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ByteCode {
    pub(super) codes: Vec<i8>,
    pub(super) step: f32,
    /// The squared length of what the code says.
    pub(super) square: f32,
}

/// A vector that is looked for.
#[derive(Clone, Debug)]
pub struct Target {
    components: Vec<f32>,
    code: OnceLock<ByteCode>,
}

impl Target {
    /// A checked vector; its code is made when a graph first needs it.
    pub fn new(components: Vec<f32>) -> Self {
        Self {
            components,
            code: OnceLock::new(),
        }
    }

    /// The components as given.
    pub fn components(&self) -> &[f32] {
        &self.components
    }

    /// The code, made by `make` if there is none yet. All graphs make the same.
    pub(super) fn code(&self, make: impl FnOnce(&[f32]) -> ByteCode) -> &ByteCode {
        self.code.get_or_init(|| make(&self.components))
    }
}
