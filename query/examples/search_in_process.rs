//! Searches two shards on two nodes, all in this process: no cluster, no socket.
//!
//! `cargo run -p shoal-query --example search_in_process`

use std::{error::Error, io::Write as _, sync::Arc, time::Duration};

use shoal_query::{
    Coordinator,
    call::Call,
    client::memory::{Node, Nodes},
    coordinator::{HomeCluster, Limits},
    shard_map::{Maps, Replica, ShardMap},
};
use shoal_schemas::{Collection, Metric, Offset, Partition, Point, control::Claim, v1};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let docs = Collection::new("docs".parse()?, 2.try_into()?, Metric::L2, 2);
    let mut nodes = Nodes::default();
    let mut claims = Vec::new();
    for (number, name) in [(0, "ada"), (1, "bob")] {
        let node = Node::new(name);
        node.host(&docs, Partition(number));
        for at in 0_u8..20 {
            let proto = v1::Point {
                id: format!("point-{at}"),
                vector: vec![f32::from(at), 1.0],
                ..v1::Point::default()
            };
            let (id, point) = Point::from_proto(proto, &docs)?;
            node.upsert(&docs, &id, &point);
        }
        let claim = Claim {
            node: name.into(),
            address: name.into(),
            ready: true,
            next_offset: None,
            early: false,
        };
        let owner = Replica::owner(claim, Offset(0));
        claims.push((docs.name.clone(), Partition(number), owner));
        nodes = nodes.with(name, Arc::clone(&node));
    }
    let (_keep, maps) = Maps::channel(ShardMap::new([docs], claims, true));
    let (limits, home) = (Limits::default(), HomeCluster::default());
    let coordinator = Coordinator::new(limits, maps, Arc::new(nodes), home);
    let request = v1::SearchRequest {
        collection: "docs".into(),
        vector: vec![7.2, 1.0],
        k: 3,
        ..v1::SearchRequest::default()
    };
    let call = Call::within(Duration::from_secs(1));
    let mut out = std::io::stdout();
    for hit in coordinator.search(request, call).await?.hits {
        writeln!(out, "{} at distance {:.3}", hit.id, hit.distance)?;
    }
    Ok(())
}
