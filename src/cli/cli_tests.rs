//! Tests of the command line.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use clap::{CommandFactory, Parser};

use super::{Cli, Verb};

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

/// The verb that a manifest of a CronJob runs, and the exit codes after which it is not tried again at once.
fn cron_job(manifest: &str) -> (Verb, Vec<serde_json::Value>) {
    let list = |name: &str| -> Vec<serde_json::Value> {
        let mut lines = manifest.lines();
        let line = lines.find_map(|line| line.trim().strip_prefix(name));
        serde_json::from_str(line.unwrap()).unwrap()
    };
    let args = list("args: ");
    let words = args.iter().map(|word| word.as_str().unwrap());
    let read = Cli::try_parse_from(["shoal"].into_iter().chain(words));
    (read.unwrap().verb, list("values: "))
}

#[test]
fn the_cron_jobs_commands_read_and_they_know_how_runs_end() {
    let (verb, final_codes) = cron_job(include_str!("../../k8s/reindex-cronjob.yaml"));
    assert!(matches!(verb, Verb::Reindex(_)));
    let [usage, timed_out, overtaken] = [2, super::reindex::TIMED_OUT, super::reindex::OVERTAKEN];
    assert_eq!(final_codes, [usage, timed_out, overtaken]);
    let (verb, final_codes) = cron_job(include_str!("../../k8s/expire-cronjob.yaml"));
    assert!(matches!(verb, Verb::Expire(_)));
    assert_eq!(final_codes, [usage]);
}

#[test]
fn every_verb_reads() {
    let lines = [
        "up",
        "up --kafka 127.0.0.1:9092 --data-dir /tmp/x --any-port --check",
        "gateway --config x.toml --check",
        "indexer --kafka a:1,b:2",
        "query",
        "collection create docs --dim 384 --metric inner-product --partitions 4 --partitioner crc32 \
         --route-by-key-prefix --m 8 --ef-construction 64 --ef-search 32 --quantization i8 \
         --replication-factor 3 --delete-retention 2days --max-record-bytes 2MiB --kafka a:1",
        "collection list --json",
        "collection describe docs",
        "collection drop docs --delete-topics",
        "collection create docs-wide --dim 4 --metric cosine --partitions 2 --reads docs",
        "alias set live docs --kafka a:1",
        "alias list --json",
        "alias drop live",
        "reindex docs --m 24 --ef-construction 64 --ef-search 32 --quantization f16 --metric l2 \
         --field year=integer --as docs-new --timeout 6h --linger 1m --keep-old",
        "reindex docs --partitions 16 --anew --delete-topic",
        "reindex docs --to docs-e5",
        "reindex docs --abort",
        "publish docs - --format jsonl --rate 10.5 --on-fault skip --quiet",
        "publish docs v.npy --meta m.jsonl.gz --id-field key --ignore a --ignore b",
        "publish docs x.jsonl --framing confluent --registry http://r:1/x --origin eu",
        "delete docs --id a --id b",
        "delete docs --ids-file -",
        "delete docs --id a --if-version 7 --gateway g:1",
        "patch docs --id a --set n=1 --set t=x=y --unset u --unset v --if-version 7 --gateway g:1",
        "patch docs --id a --vector [1,2] --model m --expires-at 2030-01-01T00:00:00Z --timeout-ms 5",
        "patch docs --id a --no-expiry",
        "search docs --vector [1,2] -k 3 --ef 50 --exact --require-all --at-least t --at-least u",
        "search docs --id a --json --with-vector --query a:1",
        "search docs --like a --like b --unlike c --group-by f",
        "get docs a b --with-vector",
        "count docs --json",
        "dlq list docs --reason wrong_dimension --partition 3 --limit 5",
        "dlq show docs 3/17 --value-to x",
        "dlq retry docs 3/17 --value x.json",
        "dlq retry docs --all --reason not_finite",
        "dlq list docs --retried",
        "snapshot create docs --shard 1 --json --query a:1",
        "snapshot list docs --store s3://b/p --incarnation 4",
        "snapshot restore docs --shard 1 --number 7 --store /x --to y",
        "snapshot verify docs --shard 1 --number 7 --json",
        "expire docs --older-than 2h --shard 1 --dry-run --json --query a:1 --gateway b:1",
        "collection create docs --dim 2 --metric l2 --partitions 1 --index flat",
        "reindex docs --index flat --quantization f16",
        "verify docs --against b:1 --ids 5 --anyway",
        "verify docs --against-folder x --shard 3",
        "config --env-names",
        "demo --data d --stay --json-only",
        "child-exec -- java -Xmx512m --version",
    ];
    for line in lines {
        let words = std::iter::once("shoal").chain(line.split_whitespace());
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let lines = [
        "",
        "collection create docs --dim 1 --metric cosine --partitions 4",
        "collection create do.cs --dim 2 --metric cosine --partitions 4",
        "publish docs",
        "publish docs - --rate 0",
        "delete docs",
        "delete docs --id a --ids-file b",
        "delete docs --ids-file b --if-version 7",
        "patch docs --set n=1",
        "patch docs --id a --no-expiry --expires-at 5",
        "patch docs --id a --if-version x",
        "search docs",
        "search docs --id a --vector [1]",
        "search docs --id a --like b",
        "search docs --vector [1] --unlike b",
        "dlq retry docs",
        "dlq retry docs --all --delete",
        "dlq list docs --reason nonsense",
        "dlq show docs here",
        "alias set live",
        "reindex",
        "reindex docs --to docs-e5 --m 8",
        "reindex docs --to docs-e5 --index flat",
        "collection create docs --dim 2 --metric l2 --partitions 1 --index tree",
        "reindex docs --to docs-e5 --as docs-new",
        "reindex docs --partitions 8 --keep-old --delete-topic",
        "config --check --print",
    ];
    for line in lines {
        let words = std::iter::once("shoal").chain(line.split_whitespace());
        assert!(Cli::try_parse_from(words).is_err(), "{line}");
    }
}

#[test]
fn help_shows_words_in_the_order_they_are_taken_in() {
    let help = Cli::try_parse_from(["shoal", "dlq", "retry", "--help"]);
    let help = help.unwrap_err().to_string();
    let at = |word: &str| help.find(word).unwrap_or_else(|| panic!("{word}: {help}"));
    let usage = at("Usage: shoal dlq retry");
    assert!(usage < at("<COLLECTION>") && at("<COLLECTION>") < at("<RECORD|--all>"));
}

#[test]
fn a_child_s_own_flags_are_left_alone() {
    let words = ["shoal", "child-exec", "--", "java", "-cp", "x", "--help"];
    let Verb::ChildExec { command } = Cli::try_parse_from(words).unwrap().verb else {
        panic!("another verb");
    };
    assert_eq!(command, ["java", "-cp", "x", "--help"]);
}
