//! Real embeddings through the whole of Shoal: recall at default settings.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::PathBuf,
};

use flate2::read::GzDecoder;
use half::f16;
use serde_json::Value;
use shoal_schemas::{Token, v1};

use crate::harness::{
    child,
    client::{self, at_least},
    root,
    world::shared,
};

pub(crate) const DIM: usize = 384;
const K: usize = 10;
/// Neighbours that are known of each query.
const KNOWN: usize = 100;
/// Equal distances may be told in any order.
const EQUAL: f32 = 1e-6;

fn file(name: &str) -> PathBuf {
    root().join("tests/data/wordnet20k").join(name)
}

/// The numbers of an `.npy` file, without their shape.
fn npy<T, const BYTES: usize>(name: &str, read: impl Fn([u8; BYTES]) -> T) -> Vec<T> {
    let bytes = fs::read(file(name)).unwrap();
    assert_eq!(&bytes[..7], b"\x93NUMPY\x01");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let numbers = bytes[10 + header..].as_chunks::<BYTES>().0;
    numbers.iter().map(|number| read(*number)).collect()
}

/// The vectors of a file, one after the other.
pub(crate) fn halves(name: &str) -> Vec<f32> {
    npy(name, |bytes| f16::from_le_bytes(bytes).to_f32())
}

fn cosine_distance(a: &[f32], b: &[f32]) -> f32 {
    let dot = |x: &[f32], y: &[f32]| -> f32 { x.iter().zip(y).map(|(a, b)| a * b).sum() };
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn recall_of_real_embeddings_at_default_settings_is_98_percent_at_least() {
    let shared = shared();
    let collection = shared.collection("wordnet", 384, 4);
    let (base, meta) = (file("w_base_f16.npy"), file("w_meta.jsonl.gz"));
    let lines = BufReader::new(GzDecoder::new(File::open(&meta).unwrap())).lines();
    let ids: Vec<String> = lines
        .map(|line| {
            let row: Value = serde_json::from_str(&line.unwrap()).unwrap();
            row["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let (base, meta) = (base.to_str().unwrap(), meta.to_str().unwrap());
    let arguments = ["publish", "wordnet", base, "--meta", meta, "--quiet"];
    let out = child::succeed(&arguments, &shared.world.variables());
    // It answers the last token of each partition: a search with them sees everything.
    let tokens: Vec<v1::Token> = out
        .lines()
        .map(|line| line.parse::<Token>().unwrap().to_proto())
        .collect();
    assert_eq!(tokens.len(), 4);
    let state = shared.settled(&collection);
    assert_eq!(state.points, 20_000);

    let queries = halves("w_queries_f16.npy");
    let queries: Vec<&[f32]> = queries.chunks(DIM).collect();
    let neighbours: Vec<i32> = npy("w_gt.npy", i32::from_le_bytes);
    let distances: Vec<f32> = npy("w_gt_dist.npy", f32::from_le_bytes);
    let rows = halves("w_base_f16.npy");
    let row_of: HashMap<&str, usize> = ids.iter().map(String::as_str).zip(0..).collect();
    let mut found = 0;
    for (part, asked) in queries.chunks(250).enumerate() {
        let ask = v1::SearchBatchRequest {
            collection: "wordnet".to_owned(),
            queries: asked
                .iter()
                .map(|query| v1::Query {
                    vector: query.to_vec(),
                    k: 10,
                    ..v1::Query::default()
                })
                .collect(),
            read: at_least(&tokens),
        };
        let answer = shared.query.search_batch(ask).unwrap();
        assert_eq!(answer.coverage.unwrap().shards_answered, 4);
        assert_eq!(answer.results.len(), asked.len());
        for (at, hits) in answer.results.iter().enumerate() {
            let query = part * 250 + at;
            let true_rows = &neighbours[query * KNOWN..query * KNOWN + K];
            let farthest = distances[query * KNOWN + K - 1];
            assert_eq!(hits.hits.len(), K);
            found += hits
                .hits
                .iter()
                .filter(|hit| {
                    let row = row_of[hit.id.as_str()];
                    let is_listed = true_rows.contains(&i32::try_from(row).unwrap());
                    let vector = &rows[row * DIM..(row + 1) * DIM];
                    is_listed || cosine_distance(queries[query], vector) <= farthest + EQUAL
                })
                .count();
        }
    }
    let recall = f64::from(u32::try_from(found).unwrap()) / 10_000.0;
    eprintln!("recall@10 {recall:.4} of 1,000 queries over 20,000 rows in 4 shards");
    assert!(recall >= 0.98, "recall@10 is {recall:.4}");

    // Texts and other fields come back with a hit.
    let ask = v1::SearchRequest {
        with_payload: true,
        ..client::search("wordnet", queries[0], 1)
    };
    let answer = shared.query.search(ask).unwrap();
    assert!(
        answer.hits[0].payload.contains_key("text"),
        "{:?}",
        answer.hits[0].payload
    );

    // A scan of everything finds exactly the true neighbours.
    for query in (0..1000).step_by(200) {
        let ask = v1::SearchRequest {
            exact: true,
            ..client::search("wordnet", queries[query], 10)
        };
        let answer = shared.query.search(ask).unwrap();
        for (hit, distance) in answer.hits.iter().zip(&distances[query * KNOWN..]) {
            assert!(
                (hit.distance - distance).abs() < 1e-4,
                "{} is not {distance}",
                hit.distance
            );
        }
    }
}
