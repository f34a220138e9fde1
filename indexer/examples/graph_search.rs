//! Recall and processor time of a packed graph, its answers re-scored from exact vectors.
//!
//! Takes a folder with `w_base_f16.npy`, `w_queries_f16.npy` and `w_gt.npy`, and perhaps a file to
//! keep the graph in: `cargo run -p shoal-indexer --example graph_search tests/data/wordnet20k`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, error::Error, fs, os::unix::fs::FileExt, path::Path, time::Duration};

use numkong::{Dot, f16};
use rustix::time::{ClockId, clock_gettime};
use shoal_indexer::index::{
    VectorIndex,
    hnsw::{Hnsw, Options},
    packed::{Graph, write},
};
use shoal_schemas::{Dim, IndexParameters, Metric, Quantization};

const DIM: usize = 384;
const K: usize = 10;
/// Answers of the walk that are scored again.
const RESCORED: usize = 15;
/// Neighbours a query in the file of true ones.
const TRUE_NEIGHBOURS: usize = 100;
const REPEATS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).ok_or("say the folder of the vectors")?;
    let folder = Path::new(&folder);
    let (base, queries) = (
        folder.join("w_base_f16.npy"),
        folder.join("w_queries_f16.npy"),
    );
    let graph = match env::args().nth(2) {
        Some(kept) if Path::new(&kept).exists() => fs::read(kept)?,
        kept => {
            let graph = build(&halves(&base)?)?;
            kept.map_or(Ok(()), |kept| fs::write(kept, &graph))?;
            graph
        }
    };
    let graph = Graph::open(graph)?;
    let queries = halves(&queries)?;
    let truth = numbers(&fs::read(folder.join("w_gt.npy"))?).to_vec();
    let vectors = fs::File::open(&base)?;
    let start = vectors.metadata()?.len() - u64::from(graph.rows()) * u64::try_from(2 * DIM)?;
    for beam in [16, 24, 32, 48, 64, 96, 128] {
        let (mut best, mut found, mut distances) = (Duration::MAX, 0, 0);
        for _ in 0..REPEATS {
            let before = cpu_time();
            (found, distances) = (0, 0);
            for (query, truth) in queries.iter().zip(truth.chunks(TRUE_NEIGHBOURS)) {
                let floats: Vec<f32> = query.iter().map(|half| half.to_f32()).collect();
                let code = graph.space().encode_query(&floats);
                let walk = graph.search(&code, beam, RESCORED, None);
                distances += walk.distances;
                let mut near = Vec::with_capacity(RESCORED);
                for one in walk.near {
                    let mut bytes = [0; 2 * DIM];
                    let at = start + u64::from(one.row) * u64::try_from(bytes.len())?;
                    vectors.read_exact_at(&mut bytes, at)?;
                    near.push((-cosine(query, &row(&bytes)), one.row));
                }
                near.sort_by(|a, b| a.0.total_cmp(&b.0));
                let truth = truth.get(..K).unwrap_or_default();
                found += near
                    .iter()
                    .take(K)
                    .filter(|(_, row)| truth.contains(row))
                    .count();
            }
            best = best.min(cpu_time() - before);
        }
        let each = best / u32::try_from(queries.len())?;
        let recall = found * 10_000 / (K * queries.len());
        let distances = distances / queries.len();
        println!(
            "beam {beam}: recall@{K} .{recall:04}, {each:.1?} a search, {distances} distances"
        );
    }
    Ok(())
}

fn build(rows: &[Vec<f16>]) -> Result<Vec<u8>, Box<dyn Error>> {
    let (quantization, metric) = (Quantization::I8, Metric::Cosine);
    let parameters = IndexParameters {
        quantization,
        ..IndexParameters::default()
    };
    let dim = Dim::try_from(u32::try_from(DIM)?)?;
    let graph = Hnsw::new(&Options {
        dim,
        metric,
        parameters,
        threads: 1,
    })?;
    let before = cpu_time();
    for (number, row) in (0..).zip(rows) {
        graph.add(
            number,
            &row.iter().map(|half| half.to_f32()).collect::<Vec<_>>(),
        )?;
    }
    let each = (cpu_time() - before) / u32::try_from(rows.len())?;
    println!("{} rows, {each:.1?} to add one", rows.len());
    let space = graph.space().ok_or("the graph holds no codes")?;
    let codes: Result<Vec<_>, _> = (0..).take(rows.len()).map(|row| graph.code(row)).collect();
    let mut bytes = Vec::new();
    write(
        &mut bytes,
        space,
        &graph.adjacency()?,
        codes?.into_iter().map(|code| (code, 0.0)),
    )?;
    Ok(bytes)
}

fn cosine(a: &[f16], b: &[f16]) -> f32 {
    let dot = |a, b| f16::dot(a, b).unwrap_or(0.0);
    dot(a, b) / dot(b, b).sqrt()
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

fn halves(path: &Path) -> Result<Vec<Vec<f16>>, Box<dyn Error>> {
    Ok(body(&fs::read(path)?)
        .chunks_exact(2 * DIM)
        .map(row)
        .collect())
}

fn row(bytes: &[u8]) -> Vec<f16> {
    let words = bytes.as_chunks::<2>().0.iter();
    words.map(|word| f16(u16::from_le_bytes(*word))).collect()
}

fn numbers(file: &[u8]) -> Vec<u32> {
    let words = body(file).as_chunks::<4>().0.iter();
    words.map(|word| u32::from_le_bytes(*word)).collect()
}

/// What follows the header of an npy file.
fn body(file: &[u8]) -> &[u8] {
    let length = file
        .get(8..10)
        .map_or(0, |at| usize::from(at[0]) + usize::from(at[1]) * 256);
    file.get(10 + length..).unwrap_or_default()
}
