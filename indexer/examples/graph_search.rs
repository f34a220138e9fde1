//! Building a graph and searching it: rows a second, rows that do not find themselves, recall, processor
//! time a search; then walks and scans among some of the rows only, which is what `fields::plan::COSTS` is fitted to.
//!
//! Takes a folder with `w_base_f16.npy`, `w_queries_f16.npy` and `w_gt.npy`, unit vectors all:
//! `cargo run -p shoal-indexer --example graph_search tests/data/wordnet20k`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, error::Error, fs, path::Path, time::Duration};

use numkong::{Dot, f16};
use rustix::time::{ClockId, clock_gettime};
use shoal_indexer::index::{
    live,
    packed::{self, Accept, Aligned, Builder, Graph},
    space::Space,
};
use shoal_schemas::{Dim, IndexParameters, Metric, Quantization};

const DIM: usize = 384;
const K: usize = 10;
/// Neighbours a query in the file of true ones.
const TRUE_NEIGHBOURS: usize = 100;
/// Answers of a walk that are scored again.
const RESCORED: usize = 15;
const METRIC: Metric = Metric::Cosine;

/// Beam of the walks among some rows.
const BEAM: usize = 96;
/// One row in so many is accepted.
const ONE_IN: [usize; 9] = [1, 2, 3, 5, 8, 12, 20, 50, 200];

type Answer<T> = Result<T, Box<dyn Error>>;

fn main() -> Answer<()> {
    let folder = env::args().nth(1).ok_or("say the folder of the vectors")?;
    let read = |name| fs::read(Path::new(&folder).join(name));
    let (base, queries) = (read("w_base_f16.npy")?, read("w_queries_f16.npy")?);
    let (base, queries) = (halves(&base), halves(&queries));
    let truth = read("w_gt.npy")?;
    let truth = body(&truth).as_chunks::<4>().0.iter();
    let truth: Vec<u32> = truth.map(|id| u32::from_le_bytes(*id)).collect();
    let dim = Dim::try_from(u32::try_from(DIM)?)?;
    let space = Space::new(dim, METRIC, Quantization::I8).ok_or("a step is to be fitted")?;
    for (name, bytes) in [("live", live(&base)?), ("built", built(&base, &space)?)] {
        let graph = Graph::open(Aligned::copy_of(&bytes))?;
        for beam in [24, 32, 48, 64] {
            let lost = lost(&graph, &space, &base, beam)?;
            println!("{name}, beam {beam}: {lost} rows do not find themselves");
        }
        for beam in [16, 24, 48, 64, 96, 128] {
            let (mut found, mut distances, before) = (0, 0, cpu_time());
            for (query, truth) in queries.iter().zip(truth.chunks(TRUE_NEIGHBOURS)) {
                let walk = graph.search(&space.encode_query(&floats(query)), beam, RESCORED, None);
                distances += walk.distances;
                let mut near = Vec::with_capacity(RESCORED);
                for one in walk.near {
                    let row = base.get(usize::try_from(one.row)?).ok_or("no such row")?;
                    near.push((f16::dot(row, query).unwrap_or(0.0), one.row));
                }
                near.sort_by(|a, b| b.0.total_cmp(&a.0));
                let truth = truth.get(..K).unwrap_or_default();
                found += near
                    .iter()
                    .take(K)
                    .filter(|(_, row)| truth.contains(row))
                    .count();
            }
            let each = (cpu_time() - before) / u32::try_from(queries.len())?;
            let recall = found * 10_000 / (K * queries.len());
            let distances = distances / queries.len();
            println!(
                "{name}, beam {beam}: recall@{K} .{recall:04}, {each:.1?}, {distances} distances"
            );
        }
    }
    among(
        &Graph::open(Aligned::copy_of(&built(&base, &space)?))?,
        &space,
        &queries,
    )
}

/// How many rows a search for their own vector does not find, nor one as near.
fn lost(graph: &Graph<Aligned>, space: &Space, rows: &[Vec<f16>], beam: usize) -> Answer<usize> {
    let mut lost = 0;
    for (number, row) in (0u32..).zip(rows) {
        let query = space.encode_query(&floats(row));
        let own = graph.distance_to(&query, number).ok_or("no such row")?;
        let walk = graph.search(&query, beam, RESCORED, None);
        lost += usize::from(walk.near.first().is_none_or(|near| near.distance > own));
    }
    Ok(lost)
}

/// Accepted are rows by chance, then the rows nearest to some other row.
fn among(graph: &Graph<Aligned>, space: &Space, queries: &[Vec<f16>]) -> Answer<()> {
    let rows = usize::try_from(graph.rows())?;
    let far: Vec<u32> = (0..graph.rows()).collect();
    let from = space.encode_query(&floats(queries.first().ok_or("no queries")?));
    let mut near = far.clone();
    near.sort_by(|a, b| {
        let [a, b] = [a, b].map(|row| graph.distance_to(&from, *row).unwrap_or(0.0));
        a.total_cmp(&b)
    });
    let mixed = |row: &u32| row.wrapping_mul(2_654_435_761);
    let mut by_chance = far;
    by_chance.sort_by_key(mixed);
    for (kind, order) in [("by chance", by_chance), ("together", near)] {
        for one_in in ONE_IN {
            let mut taken = vec![false; rows];
            let mut list = order.get(..rows / one_in).unwrap_or_default().to_vec();
            list.sort_unstable();
            for row in &list {
                *taken.get_mut(usize::try_from(*row)?).ok_or("no such row")? = true;
            }
            let takes =
                |row: u32| usize::try_from(row).is_ok_and(|row| taken.get(row) == Some(&true));
            let accept = Accept {
                takes: &takes,
                max_distances: usize::MAX,
            };
            let (mut found, mut distances) = (0, 0);
            let (mut walking, mut scanning) = (Duration::ZERO, Duration::ZERO);
            for query in queries.iter().step_by(5) {
                let (query, before) = (space.encode_query(&floats(query)), cpu_time());
                let walk = graph.search(&query, BEAM, K, Some(accept));
                walking += cpu_time() - before;
                let before = cpu_time();
                let measured = list.iter().map(|row| graph.distance_to(&query, *row));
                let mut all: Vec<f32> = measured.flatten().collect();
                scanning += cpu_time() - before;
                all.sort_by(f32::total_cmp);
                let last = all.get(K - 1).ok_or("too few rows")?;
                found += walk
                    .near
                    .iter()
                    .filter(|near| near.distance <= *last)
                    .count();
                distances += walk.distances;
            }
            let asked = queries.len().div_ceil(5);
            let each = |time: Duration, of: usize| {
                time.as_secs_f64() * 1e9 / f64::from(u32::try_from(of.max(1)).unwrap_or(u32::MAX))
            };
            println!(
                "{kind}, 1 in {one_in}: recall@{K} .{:04}, {} distances, {:.0} ns each, {:.0} us; scan {:.1} ns each, {:.0} us",
                found * 10_000 / (K * asked),
                distances / asked,
                each(walking, distances),
                each(walking, asked) / 1e3,
                each(scanning, asked * list.len()),
                each(scanning, asked) / 1e3,
            );
        }
    }
    Ok(())
}

fn live(rows: &[Vec<f16>]) -> Answer<Vec<u8>> {
    let graph = live::Graph::new(&live::Options {
        dim: Dim::try_from(u32::try_from(DIM)?)?,
        metric: METRIC,
        parameters: IndexParameters {
            quantization: Some(Quantization::I8),
            ..IndexParameters::default()
        },
    });
    let before = cpu_time();
    for (number, row) in (0..).zip(rows) {
        graph.add(number, &floats(row));
    }
    println!(
        "live: {:.1?} to add a row",
        (cpu_time() - before) / u32::try_from(rows.len())?
    );
    let mut bytes = Vec::new();
    graph.write(&mut bytes)?;
    Ok(bytes)
}

fn built(rows: &[Vec<f16>], space: &Space) -> Answer<Vec<u8>> {
    let (space, parameters, count) = (
        space.clone(),
        IndexParameters::default(),
        u32::try_from(rows.len())?,
    );
    let mut builder = Builder::new(packed::Options {
        space: space.clone(),
        parameters,
        rows: count,
    });
    let before = cpu_time();
    for row in rows {
        let mut code = Vec::new();
        let bias = space.encode_row(&floats(row), &mut code);
        builder.insert(&code, bias);
    }
    println!("built: {:.1?} to add a row", (cpu_time() - before) / count);
    let mut bytes = Vec::new();
    builder.write(&mut bytes)?;
    Ok(bytes)
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

fn floats(halves: &[f16]) -> Vec<f32> {
    halves.iter().map(|half| half.to_f32()).collect()
}

fn halves(file: &[u8]) -> Vec<Vec<f16>> {
    let rows = body(file).chunks_exact(2 * DIM);
    let words = |row: &[u8]| {
        row.as_chunks::<2>()
            .0
            .iter()
            .map(|word| f16(u16::from_le_bytes(*word)))
            .collect()
    };
    rows.map(words).collect()
}

/// What follows the header of an npy file.
fn body(file: &[u8]) -> &[u8] {
    let length = file
        .get(8..10)
        .map_or(0, |at| usize::from(at[0]) + usize::from(at[1]) * 256);
    file.get(10 + length..).unwrap_or_default()
}
