//! Distances by loops that run on any processor, to tell what one without wide registers takes.

use crate::index::{
    kernel::Kernel,
    space::{Measure, QueryCode, Visit},
};

impl QueryCode {
    /// What [`QueryCode::distance`] says, by a loop that runs on any processor; `None` for codes whose only kernels are a
    /// crate's.
    #[inline]
    pub fn distance_plainly(&self, code: &[u8], bias: f32) -> Option<f32> {
        struct Plainly<'a>(&'a [u8], f32);
        impl Visit for Plainly<'_> {
            type Output = Option<f32>;
            #[inline(always)]
            fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> Option<f32> {
                let dot = measure.kernel.dot_plainly(self.0)?;
                Some(measure.least(measure.scale.distance(dot, self.1)))
            }
        }
        self.visit(Plainly(code, bias))
    }
}
