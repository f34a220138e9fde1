//! The command line does the whole job by itself, and says what is wrong.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use shoal_schemas::Token;

use crate::harness::{
    child::{self, SHOAL},
    world::{Shared, shared},
};

fn variables(shared: &Shared) -> Vec<(String, String)> {
    let mut variables = shared.world.variables();
    let query = shared.query_role.settings.grpc.to_string();
    variables.push(("SHOAL_QUERY__GRPC_LISTEN".to_owned(), query));
    variables
}

fn shoal(arguments: &[&str]) -> String {
    child::succeed(arguments, &variables(shared()))
}

/// What it prints to standard error when it fails.
fn refused(arguments: &[&str]) -> String {
    let (status, _, told) = child::run(arguments, &variables(shared()));
    assert!(!status.success(), "shoal {arguments:?} succeeds");
    told
}

fn line(number: u32) -> String {
    let vector = [number, 1, 2, 3];
    let point = json!({"id": format!("c-{number}"), "vector": vector, "payload": {"n": number}});
    format!("{point}\n")
}

/// `--at-least` with each token.
fn at_least(tokens: &str) -> Vec<String> {
    let tokens = tokens.lines().inspect(|token| {
        assert!(token.parse::<Token>().is_ok(), "{token}");
    });
    tokens
        .flat_map(|token| ["--at-least".to_owned(), token.to_owned()])
        .collect()
}

#[test]
fn a_collection_lives_from_its_definition_to_its_end_by_commands_alone() {
    let shared = shared();
    let create = [
        "collection",
        "create",
        "cli",
        "--dim",
        "4",
        "--metric",
        "l2",
        "--partitions",
        "4",
    ];
    assert!(shoal(&create).contains("created"));
    assert!(shoal(&create).contains("was there already"));
    let differs = [
        "collection",
        "create",
        "cli",
        "--dim",
        "5",
        "--metric",
        "l2",
        "--partitions",
        "4",
    ];
    assert!(refused(&differs).contains("dim"), "{}", refused(&differs));
    assert!(shoal(&["collection", "list"]).contains("cli"));
    assert!(shoal(&["collection", "describe", "cli"]).contains("l2"));
    let aliases = || shoal(&["alias", "list", "--json"]);
    assert!(shoal(&["alias", "set", "cli-name", "cli"]).contains("cli"));
    assert!(aliases().contains("cli-name"), "{}", aliases());
    assert!(shoal(&["count", "cli-name"]).contains('0'));
    assert!(refused(&["alias", "set", "cli-name", "cli-none"]).contains("cli-none"));
    shoal(&["alias", "drop", "cli-name"]);
    assert!(!aliases().contains("cli-name"), "{}", aliases());
    assert!(refused(&["count", "cli-name"]).contains("cli-name"));

    // From a file, and from standard input.
    let file = shared.world.folder.join("points.jsonl");
    fs::write(&file, (0..50).map(line).collect::<String>()).unwrap();
    let from_file = shoal(&["publish", "cli", file.to_str().unwrap(), "--quiet"]);
    let mut command = Command::new(SHOAL);
    command
        .args(["publish", "cli", "-", "--quiet"])
        .envs(variables(shared));
    let mut publish = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = publish.stdin.take().unwrap();
    input
        .write_all((50..60).map(line).collect::<String>().as_bytes())
        .unwrap();
    drop(input);
    let output = publish.wait_with_output().unwrap();
    assert!(output.status.success());
    let from_input = String::from_utf8(output.stdout).unwrap();
    let read = at_least(&(from_file + &from_input));
    let read: Vec<&str> = read.iter().map(String::as_str).collect();
    // The shards of a new collection are taken a moment after it was made.
    let found = shoal_runtime::eventually(crate::harness::DEADLINE, "the shards to serve", || {
        let search = [
            "search",
            "cli",
            "--vector",
            "[7, 1, 2, 3]",
            "-k",
            "3",
            "--json",
        ];
        let arguments = [&search[..], &read].concat();
        let (status, out, _) = child::run(&arguments, &variables(shared));
        status.success().then_some(out)
    });
    let found: Value = serde_json::from_str(&found).unwrap();
    let ids: Vec<&str> = found["hits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| hit["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["c-7", "c-6", "c-8"]);
    assert_eq!(found["hits"][0]["payload"]["n"], 7);
    // Like the seventh and unlike the fifth is around the ninth.
    for (unlike, expected) in [
        (&[][..], ["c-6", "c-8"]),
        (&["--unlike", "c-5"], ["c-9", "c-10"]),
    ] {
        let like = ["search", "cli", "--like", "c-7", "-k", "2", "--json"];
        let found: Value = serde_json::from_str(&shoal(&[&like[..], unlike].concat())).unwrap();
        let ids = found["hits"].as_array().unwrap().iter();
        let ids: Vec<&str> = ids.map(|hit| hit["id"].as_str().unwrap()).collect();
        assert_eq!(ids, expected, "{unlike:?}");
    }
    assert!(refused(&["search", "cli", "--like", "c-none"]).contains("has no point `c-none`"));
    let got = shoal(&["get", "cli", "c-7", "--with-vector"]);
    let got: Value = serde_json::from_str(&got).unwrap();
    assert_eq!(got["vector"], json!([7.0, 1.0, 2.0, 3.0]));
    assert_eq!(shoal(&["count", "cli"]).trim(), "60");

    // What every shard holds, by its digest: equal to itself, seen through one query node or two.
    let address = shared.query_role.settings.grpc.to_string();
    let verified = shoal(&["verify", "cli", "--json", "--against", &address]);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    let points: u64 = verified["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| shard["points"].as_u64().unwrap())
        .sum();
    assert_eq!(points, 60);
    let verdicts = verified["verdicts"].as_array().unwrap();
    assert!(
        verdicts.len() == 4 && verdicts.iter().all(|one| one["verdict"] == "equal"),
        "{verified}"
    );

    // Deleted by id and by a list.
    let list = shared.world.folder.join("ids.txt");
    fs::write(
        &list,
        (10..20)
            .map(|number| format!("c-{number}\n"))
            .collect::<String>(),
    )
    .unwrap();
    let one = shoal(&["delete", "cli", "--id", "c-7", "--quiet"]);
    let many = shoal(&[
        "delete",
        "cli",
        "--ids-file",
        list.to_str().unwrap(),
        "--quiet",
    ]);
    let read = at_least(&(one + &many));
    let read: Vec<&str> = read.iter().map(String::as_str).collect();
    let count = [&["count", "cli"][..], &read].concat();
    assert_eq!(shoal(&count).trim(), "49");
    assert!(refused(&["get", "cli", "c-7"]).contains("no point `c-7`"));

    shoal(&["collection", "drop", "cli", "--delete-topics"]);
    assert!(
        refused(&["publish", "cli", file.to_str().unwrap(), "--quiet"]).contains("does not exist")
    );
}

#[test]
fn a_faulty_line_stops_a_publish_by_name_or_is_passed_over_where_told_so() {
    let shared = shared();
    shared.collection("faulty", 4, 2);
    let file = shared.world.folder.join("faulty.jsonl");
    let large =
        json!({"id": "large", "vector": [1, 2, 3, 4], "payload": {"t": "x".repeat(2 << 20)}});
    let lines = [
        line(1),
        "{\"id\": \"short\", \"vector\": [1, 2]}\n".to_owned(),
        format!("{large}\n"),
        line(2),
    ];
    fs::write(&file, lines.concat()).unwrap();
    let file = file.to_str().unwrap();
    let told = refused(&["publish", "faulty", file, "--quiet"]);
    assert!(
        told.contains("2 components") && told.contains("faulty.jsonl:2"),
        "{told}"
    );
    let summary = shoal(&[
        "publish",
        "faulty",
        file,
        "--quiet",
        "--json",
        "--on-fault",
        "skip",
    ]);
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(
        (&summary["records"], &summary["skipped"]),
        (&json!(2), &json!(2)),
        "{summary}"
    );
    let over_size = shared.world.folder.join("large.jsonl");
    fs::write(&over_size, format!("{large}\n")).unwrap();
    let told = refused(&["publish", "faulty", over_size.to_str().unwrap(), "--quiet"]);
    assert!(
        told.contains("`large`") && told.contains("1048576"),
        "{told}"
    );
}

#[test]
fn settings_are_checked_all_at_once_before_anything_starts() {
    let variables = [
        ("SHOAL_QUERY__MAX_K", "0"),
        ("SHOAL_INDEXER__ENGINE__MEMTABLE_ROWS", "1"),
        ("SHOAL_KAFKA__BOOTSTRAP", "nowhere"),
        ("SHOAL_QUERY__MAX_KK", "5"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (status, out, told) = child::run(&["indexer", "--check"], &variables);
    assert_eq!(status.code(), Some(2), "{out}{told}");
    for fault in ["query.max_k ", "memtable_rows", "kafka.bootstrap", "max_kk"] {
        let found = told.to_lowercase().contains(fault);
        assert!(found, "{fault} is not told: {told}");
    }
    let (status, out, _) = child::run(&["indexer", "--check"], &[]);
    assert!(status.success() && out.contains("in order"), "{out}");
}
