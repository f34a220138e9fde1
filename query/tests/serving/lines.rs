//! Searches as NDJSON over HTTP: a line for a line, while the body is still sent.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value as Json, json};
use shoal_query::Config;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::world::{PATIENCE, World, collection, fill};

const PATH: &str = "/v1/collections/docs/search/stream";

/// Sends a body, and gives the status and the lines of the answer.
async fn sent(world: &World, body: impl Into<String>) -> (u16, Vec<Json>) {
    let request = world.http.post(world.url(PATH)).body(body.into());
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (status, lines.collect())
}

/// What a line of an answer says: its hits, or why there are none.
fn told(line: &Json) -> String {
    let hits = line["response"]["hits"].as_array();
    match hits {
        Some(hits) => hits.iter().map(|hit| hit["id"].as_str().unwrap()).collect(),
        None => {
            let failure = &line["failure"];
            let [code, message] = ["code", "message"].map(|name| failure[name].as_str().unwrap());
            format!("{code}: {message}")
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_is_answered_under_its_id_and_failures_end_nothing() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 12);
    let search = json!({"vector": [4.0, 0.0, 0.0], "k": 1, "with_payload": true});
    let lines = [
        json!({"request_id": 1, "search": search}).to_string(),
        String::new(),
        json!({"request_id": 2, "recommend": {"positive": ["p3"], "k": 1}}).to_string(),
        "{\"request_id\": 3".to_owned(),
        json!({"request_id": 4, "timeout_ms": 5000, "search": {"vector": [1.0], "k": 1}})
            .to_string(),
        json!({"request_id": 5}).to_string(),
        json!({"request_id": 6, "search": {"vector": [7.0, 0.0, 0.0], "k": 1}}).to_string(),
    ];
    let (status, answers) = sent(&world, lines.join("\n")).await;
    assert_eq!(status, 200);
    assert_eq!(answers.len(), 6, "a blank line is none");
    let mut unread = Vec::new();
    let mut found = BTreeMap::new();
    for line in &answers {
        match line["request_id"].as_u64().unwrap() {
            0 => unread.push(told(line)),
            id => drop(found.insert(id, told(line))),
        }
    }
    assert!(
        unread[0].starts_with("INVALID_ARGUMENT: line 4 is not the JSON asked for: "),
        "{unread:?}"
    );
    assert_eq!(unread.len(), 1);
    assert!(
        found[&5].starts_with("INVALID_ARGUMENT: line 6 is refused: it holds one of `search`"),
        "{found:?}"
    );
    assert!(found[&4].starts_with("INVALID_ARGUMENT: "), "{found:?}");
    let ids = [1, 2, 6].map(|id| found[&id].as_str());
    assert_eq!(ids, ["p4", "p2", "p7"]);
    let first = answers.iter().find(|line| line["request_id"] == 1).unwrap();
    assert_eq!(
        first["response"]["coverage"]["shards_answered"], 2,
        "{first}"
    );
    assert!(
        first["response"]["hits"][0]["payload"].is_object(),
        "{first}"
    );

    let (status, refused) = sent(&world, "no JSON\n").await;
    assert_eq!((status, refused.len()), (400, 1));
    let message = refused[0]["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("line 1 is not the JSON asked for"),
        "{message}"
    );
    assert_eq!(sent(&world, "").await, (200, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_too_long_is_the_last() {
    let config = Config {
        max_message_bytes: 1 << 16,
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 3);
    let line = json!({"request_id": 1, "search": {"vector": [1.0, 0.0, 0.0], "k": 1}});
    let long = " ".repeat(1 << 17);
    // All of them together are longer, which is fine.
    let many = format!("{line}\n").repeat(2000);
    let (status, answers) = sent(&world, format!("{many}{long}\n{line}\n")).await;
    assert_eq!((status, answers.len()), (200, 2001));
    let failed: Vec<String> = answers
        .iter()
        .map(told)
        .filter(|told| told != "p1")
        .collect();
    let expected = "INVALID_ARGUMENT: line 2001 is longer than 65536 bytes (`query.max_message_bytes`); the stream ends here";
    assert_eq!(failed, [expected]);
}

/// A call whose body goes on.
struct Going {
    lines: BufReader<TcpStream>,
}

impl Going {
    async fn begin(world: &World) -> Self {
        let mut stream = TcpStream::connect(world.addresses.http).await.unwrap();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: shoal\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let lines = BufReader::new(stream);
        Self { lines }
    }

    async fn send(&mut self, line: &Json) {
        let line = format!("{line}\n");
        let chunk = format!("{:x}\r\n{line}\r\n", line.len());
        self.lines.write_all(chunk.as_bytes()).await.unwrap();
    }

    /// Waits until the node waits for the body.
    async fn taken(&mut self) {
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            let read = tokio::time::timeout(PATIENCE, self.lines.read_line(&mut line)).await;
            assert!(
                read.expect("a head in time").unwrap() > 0,
                "the connection is there"
            );
        }
    }

    /// The next answer, without what the protocol has around it; `None` at the end.
    async fn next(&mut self) -> Option<Json> {
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(PATIENCE, self.lines.read_line(&mut line)).await;
            read.expect("an answer in time").unwrap();
            match line.trim() {
                "0" => return None,
                answer if answer.starts_with('{') => {
                    return Some(serde_json::from_str(answer).unwrap());
                }
                _ => assert!(!line.is_empty(), "the connection is there"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_answered_while_the_body_goes_on_and_a_node_that_stops_ends_it() {
    let config = Config {
        default_deadline: Duration::from_secs(600),
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 5);
    let mut going = Going::begin(&world).await;
    for n in 1..4 {
        let search = json!({"vector": [n, 0, 0], "k": 1});
        going
            .send(&json!({"request_id": n, "search": search}))
            .await;
        let answer = going.next().await.unwrap();
        assert_eq!(
            (&answer["request_id"], told(&answer)),
            (&json!(n), format!("p{n}"))
        );
    }
    // One that has not sent anything yet, and is waited for.
    let mut silent = Going::begin(&world).await;
    silent.taken().await;
    world.tasks.cancel().cancel();
    assert_eq!(going.next().await, None);
    assert_eq!(silent.next().await, None);
}
