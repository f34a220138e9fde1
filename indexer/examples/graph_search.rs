//! Building a packed graph and searching it: rows a second, recall, processor time a search.
//!
//! Takes a folder with `w_base_f16.npy`, `w_queries_f16.npy` and `w_gt.npy`, unit vectors all:
//! `cargo run -p shoal-indexer --example graph_search tests/data/wordnet20k`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, error::Error, fs, path::Path, time::Duration};

use numkong::{Dot, f16};
use rustix::time::{ClockId, clock_gettime};
use shoal_indexer::index::{
    VectorIndex, hnsw,
    packed::{self, Aligned, Builder, Graph},
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
    for (name, bytes) in [
        ("usearch", by_usearch(&base, &space)?),
        ("own", own(&base, &space)?),
    ] {
        let graph = Graph::open(Aligned::copy_of(&bytes))?;
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
    Ok(())
}

fn by_usearch(rows: &[Vec<f16>], space: &Space) -> Answer<Vec<u8>> {
    let (dim, metric, parameters) = (space.dim(), METRIC, IndexParameters::default());
    let options = hnsw::Options {
        dim,
        metric,
        parameters,
        threads: 1,
    };
    let (graph, before) = (hnsw::Hnsw::new(&options)?, cpu_time());
    for (number, row) in (0..).zip(rows) {
        graph.add(number, &floats(row))?;
    }
    println!(
        "usearch: {:.1?} to add a row",
        (cpu_time() - before) / u32::try_from(rows.len())?
    );
    let codes: Result<Vec<_>, _> = (0..u32::try_from(rows.len())?)
        .map(|row| graph.code(row))
        .collect();
    let mut bytes = Vec::new();
    let codes = codes?.into_iter().map(|code| (code, 0.0));
    packed::write(
        &mut bytes,
        space,
        &graph.adjacency(u32::try_from(rows.len())?)?,
        codes,
    )?;
    Ok(bytes)
}

fn own(rows: &[Vec<f16>], space: &Space) -> Answer<Vec<u8>> {
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
    println!("own: {:.1?} to add a row", (cpu_time() - before) / count);
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
