//! What it costs to find the rows that match a filter, in a million rows of three fields.
//!
//! Run it optimised: `cargo run --release -p shoal-indexer --example filter_cost`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{error::Error, ops::Bound};

use shoal_indexer::fields::{Growing, Sealed};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{FieldKind, Filter, Payload, Value, filter::Bounds};

const ROWS: u32 = 1_000_000;

/// A number below 1,000, one of 45 words and a name of its own.
fn payload(row: u32) -> Payload {
    let random = (row.wrapping_mul(2_654_435_761) >> 12) % 1000;
    let price = Value::Integer(random.into());
    let genre = Value::String(format!("{:02}", random % 45));
    let name = Value::String(format!("{random:03} {row}"));
    let named = [("price", price), ("genre", genre), ("name", name)];
    Payload(named.map(|(field, value)| (field.to_owned(), value)).into())
}

fn below(field: &str, end: Value) -> Filter {
    let (lower, upper) = (Bound::Unbounded, Bound::Excluded(end));
    let (field, bounds) = (field.to_owned(), Bounds { lower, upper });
    Filter::Range { field, bounds }
}

/// Nanoseconds a row of the fastest of some runs.
fn best(run: impl Fn() -> usize) -> f64 {
    let runs = (0..50).map(|_| (Stopwatch::start(), run()).0.seconds());
    runs.fold(f64::INFINITY, f64::min) * 1e9 / f64::from(ROWS)
}

fn main() -> Result<(), Box<dyn Error>> {
    let (text, number) = (FieldKind::Keyword, FieldKind::Integer);
    let kinds = [("genre", text), ("name", text), ("price", number)];
    let growing = Growing::new(kinds.map(|(field, kind)| (field.to_owned(), kind)).into());
    (0..ROWS).for_each(|row| growing.push(row, &payload(row)));
    while growing.merge()? {}
    let sealed = Sealed::open(growing.seal()?)?;
    println!("{} bytes for {ROWS} rows", sealed.as_bytes().len());
    for (per_myriad, genres) in [(5000, 22), (500, 2), (50, 1), (5, 1)] {
        let price = below("price", Value::Integer(per_myriad / 10));
        let name = format!("{:03} {}", per_myriad / 10, per_myriad % 10);
        let name = below("name", Value::String(name));
        let genre = below("genre", Value::String(format!("{genres:02}")));
        let both = Filter::All(vec![name.clone(), price.clone()]);
        for filter in [price, genre, name, both] {
            let in_sealed = || sealed.evaluate(&filter).map_or(0, |rows| rows.len());
            let in_growing = || growing.evaluate(&filter).map_or(0, |rows| rows.len());
            let (rows, sealed, growing) = (in_sealed(), best(in_sealed), best(in_growing));
            println!(
                "{rows:6} rows: sealed {sealed:.4} ns a row, growing {growing:.4}: {filter:?}"
            );
        }
    }
    Ok(())
}
