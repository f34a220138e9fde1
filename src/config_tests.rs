//! Tests of the settings.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, time::Duration};

use shoal_indexer::config::Ownership;
use shoal_runtime::config::{ConfigError, Validate};

use super::{Settings, env_names, load};

fn faults(settings: &Settings) -> Vec<String> {
    let mut faults = Vec::new();
    settings.validate(&mut faults);
    faults
}

fn read(text: &str) -> Result<Settings, Vec<String>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    match load(Some(file.path())) {
        Ok(loaded) => Ok(loaded.settings),
        Err(ConfigError::Faults { faults }) => Err(faults),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn defaults_have_no_fault() {
    assert_eq!(faults(&Settings::default()), Vec::<String>::new());
}

#[test]
fn faults_of_every_section_are_told_at_once() {
    let text = "
        [kafka]
        bootstrap = 'nowhere'
        [kafka.client]
        'auto.offset.reset' = 'earliest'
        [registry]
        url = 'localhost:8081'
        [telemetry]
        filter = 'shoal=nonsense=1'
        [gateway]
        deadline = '0s'
        grpc_lissten = '127.0.0.1:1'
        [indexer]
        drain_timeout = '1m'
        [indexer.engine]
        memtable_rows = 'many'
        [query]
        max_k = 0
        [local]
        kafka_port = 0
    ";
    let faults = read(text).unwrap_err();
    let named = [
        "kafka.bootstrap",
        "kafka.client.auto.offset.reset",
        "registry.url",
        "telemetry.filter",
        "gateway.deadline",
        "grpc_lissten",
        "indexer.drain_timeout is 60s, has to be below kafka.rebalance_timeout",
        "indexer.engine.memtable_rows",
        "query.max_k",
        "local.kafka_port",
    ];
    for name in named {
        assert!(
            faults.iter().any(|fault| fault.contains(name)),
            "{name}: {faults:#?}"
        );
    }
    assert_eq!(faults.len(), named.len(), "{faults:#?}");
}

#[test]
fn roles_do_not_share_a_port() {
    let mut settings = Settings::default();
    settings.query.http_listen = settings.gateway.grpc_listen;
    settings.indexer.http_listen = settings.indexer.grpc_listen;
    let found = faults(&settings);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found
            .iter()
            .any(|fault| fault.starts_with("gateway.grpc_listen and query"))
    );
    let any = "127.0.0.1:0".parse().unwrap();
    settings.query.http_listen = any;
    settings.indexer.http_listen = any;
    settings.indexer.grpc_listen = any;
    assert_eq!(faults(&settings), Vec::<String>::new());
}

#[test]
fn each_kind_of_ownership_can_be_set() {
    let settings = read("[indexer.ownership]\nkind = 'static'\nshards = [1, 2]\n").unwrap();
    let Ownership::Static { shards } = settings.indexer.ownership else {
        panic!("{:?}", settings.indexer.ownership);
    };
    assert_eq!(shards, [1, 2]);
    let settings = read("[indexer.ownership]\ngroup = 'mine'\n").unwrap();
    let Ownership::Group { group } = settings.indexer.ownership else {
        panic!("{:?}", settings.indexer.ownership);
    };
    assert_eq!(group, "mine");
    let settings = read("[indexer.ownership]\nkind = 'ring'\nlease = '3s'\n").unwrap();
    let lease = Duration::from_secs(3);
    assert_eq!(settings.indexer.ownership, Ownership::Ring { lease });
}

#[test]
fn a_ring_wants_a_name_without_a_slash_and_labels_within_bounds() {
    let text = "
        [indexer]
        node = 'a/b'
        weight = 17
        labels = { gpu = '' }
        [indexer.ownership]
        kind = 'ring'
        lease = '1ms'
        [indexer.announce.etcd]
        endpoints = ['https://a:1']
    ";
    let faults = read(text).unwrap_err();
    let named = ["indexer.node", "weight", "labels", "lease", "announce.etcd"];
    for name in named {
        let is_named = faults.iter().any(|fault| fault.contains(name));
        assert!(is_named, "{name}: {faults:#?}");
    }
    assert_eq!(faults.len(), named.len(), "{faults:#?}");
}

#[test]
fn an_edge_node_has_regions_and_needs_somewhere_to_keep_what_it_is_to_give_later() {
    let regions = "[{ name = 'eu', address = 'eu.example:7730' }]";
    let text = format!("[query.edge]\nregions = {regions}\nmax_stale = '10m'\n");
    let faults = read(&text).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("query.cache.memory"), "{faults:?}");
    let settings = read(&format!("{text}[query.cache]\nmemory = '8 MiB'\n")).unwrap();
    assert!(settings.query.edge.is_edge());
    let faults = read(&format!(
        "{text}[query.cache]\nmemory = '8 MiB'\nkeep = '1m'\n"
    ));
    assert!(faults.unwrap_err()[0].contains("query.cache.keep"));
}

#[test]
fn variables_of_every_section_are_named() {
    let names = env_names();
    for name in [
        "SHOAL_KAFKA__BOOTSTRAP",
        "SHOAL_REGISTRY__URL",
        "SHOAL_TELEMETRY__FORMAT",
        "SHOAL_GATEWAY__ORIGIN",
        "SHOAL_INDEXER__ENGINE__BATCH_RECORDS",
        "SHOAL_INDEXER__ADVERTISE",
        "SHOAL_QUERY__GRPC_LISTEN",
        "SHOAL_LOCAL__DATA_DIR",
    ] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
}

#[test]
fn what_is_printed_reads_back_and_hides_secrets() {
    let mut settings = Settings::default();
    settings
        .kafka
        .client
        .insert("sasl.password".into(), "hunter2".into());
    settings.query.default_deadline = Duration::from_millis(1234);
    let mut secretive = settings.clone();
    secretive.query.embedding.api_key = Some("hunter2".into());
    for scheme in ["redis", "rediss"] {
        let address = format!("{scheme}://me:hunter2@127.0.0.1:6379");
        secretive.query.cache.redis = Some(address);
        for settings in [&settings, &secretive] {
            let text = settings.to_toml();
            assert!(!text.contains("hunter2"), "{text}");
        }
        let shown = format!("{scheme}://***@127.0.0.1:6379");
        assert!(secretive.to_toml().contains(&shown), "{shown}");
    }
    let back = read(&settings.to_toml()).unwrap();
    assert_eq!(back.query, settings.query);
    assert_eq!(back.gateway, settings.gateway);
}

#[test]
fn a_gateway_and_an_indexer_that_are_told_of_different_regions_are_a_fault() {
    let text = "
        [gateway.residency]
        region = 'eu'
        regions = { us = { gateways = ['us.example:7710'] } }
        tenants = { acme = 'us' }
        [indexer]
        region = 'REGION'
    ";
    assert!(read(&text.replace("REGION", "eu")).is_ok());
    let faults = read(&text.replace("REGION", "us")).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("gateway.residency.region is `eu`"));

    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "[gateway.residency]\nregion = 'eu'\n").unwrap();
    let loaded = load(Some(file.path())).unwrap();
    let settings = crate::up::settings(&loaded, &crate::up::Broker::Own);
    assert_eq!(settings.indexer.region.as_str(), "eu");
}
