//! Recall against queries a second, at several beam widths, and what lies between them.

use serde_json::{Value, json};

use crate::figures::{Repeats, round};

/// Beam widths that are tried.
pub(crate) const BEAMS: [usize; 20] = [
    10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 512,
];

/// One beam width of one side.
#[derive(Clone, Debug)]
pub(crate) struct Swept {
    pub(crate) ef: usize,
    pub(crate) recall: f64,
    pub(crate) rate: Repeats,
    /// Queries a second of processor time.
    pub(crate) cpu_rate: Repeats,
}

impl Swept {
    pub(crate) fn figures(&self) -> Value {
        json!({
            "ef": self.ef,
            "recall_at_10": round(self.recall),
            "queries_per_second": round(self.rate.median()),
            "spread": self.rate.spread(),
            "queries_per_cpu_second": round(self.cpu_rate.median()),
        })
    }
}

/// A rate at a recall.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) rate: f64,
    pub(crate) cpu_rate: f64,
    /// The narrowest beam has more recall than was asked for: the rate is what it gives, a lower bound.
    pub(crate) is_bound: bool,
}

/// The rate at `target` recall: the time a query takes, interpolated linearly in recall between the
/// last beam width below the target and the first one that reaches it. `None` if none reaches it.
pub(crate) fn at_recall(curve: &[Swept], target: f64) -> Option<At> {
    let reaches = curve.iter().position(|point| point.recall >= target)?;
    let above = curve.get(reaches)?;
    let Some(below) = reaches.checked_sub(1).and_then(|below| curve.get(below)) else {
        return Some(At {
            rate: above.rate.median(),
            cpu_rate: above.cpu_rate.median(),
            is_bound: above.recall > target,
        });
    };
    let share = (target - below.recall) / (above.recall - below.recall);
    let between =
        |below: f64, above: f64| 1.0 / (1.0 / below + (1.0 / above - 1.0 / below) * share);
    Some(At {
        rate: between(below.rate.median(), above.rate.median()),
        cpu_rate: between(below.cpu_rate.median(), above.cpu_rate.median()),
        is_bound: false,
    })
}

/// The beam widths worth timing, from their recalls on other queries: those from one step below
/// the lowest target to one step above the highest.
pub(crate) fn worth_timing(recalls: &[f64], lowest: f64, highest: f64) -> Vec<usize> {
    let last = recalls.len().saturating_sub(1);
    let reaches = |target: f64| recalls.iter().position(|recall| *recall >= target);
    let from = reaches(lowest).unwrap_or(last).saturating_sub(2);
    let to = reaches(highest).unwrap_or(last).saturating_add(1).min(last);
    BEAMS.get(from..=to).unwrap_or_default().to_vec()
}
