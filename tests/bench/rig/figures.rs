//! Medians, percentiles and spreads, and how they are printed.

use std::{fmt::Display, io::Write as _, time::Duration};

use serde_json::{Value, json};

/// Prints one line at once.
pub(crate) fn say(line: impl Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// One figure, measured several times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Repeats(Vec<f64>);

impl Repeats {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn median(&self) -> f64 {
        percentile(&mut self.0.clone(), 0.5)
    }

    /// The latest value.
    pub(crate) fn last(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    fn ends(&self) -> (f64, f64) {
        let low = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (low, high)
    }

    /// `median (lowest - highest) unit`, for a person.
    pub(crate) fn text(&self, unit: &str) -> String {
        let (low, high) = self.ends();
        let digits = if self.median() < 100.0 { 2 } else { 0 };
        format!(
            "{:.digits$} ({low:.digits$} - {high:.digits$}) {unit}",
            self.median()
        )
    }

    /// Lowest and highest.
    pub(crate) fn spread(&self) -> Value {
        let (low, high) = self.ends();
        json!([round(low), round(high)])
    }
}

impl FromIterator<f64> for Repeats {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The value that a share of all values does not exceed; the middle of two where it lies between.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = share * last as f64;
    let value = |index: f64| values.get(index as usize).copied().unwrap_or(f64::NAN);
    let (below, above) = (value(at.floor()), value(at.ceil()));
    below + (above - below) * at.fract()
}

/// Latencies of one run, milliseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<f64>);

impl Latencies {
    pub(crate) fn push(&mut self, latency: Duration) {
        self.0.push(millis(latency));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn at(&self, share: f64) -> f64 {
        percentile(&mut self.0.clone(), share)
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Four significant digits: nothing measured here is known better.
pub(crate) fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    if digits <= 0 {
        return value.round();
    }
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}
