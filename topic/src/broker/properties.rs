//! Settings of the one Kafka node.

use std::{collections::BTreeMap, path::Path};

/// Fewer internal partitions and threads than Kafka's defaults: a quicker start and less memory,
/// on a machine that does other work. All replication is 1: there is one node.
const OWN: [(&str, &str); 25] = [
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    (
        "listener.security.protocol.map",
        "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    ),
    ("controller.listener.names", "CONTROLLER"),
    ("inter.broker.listener.name", "PLAINTEXT"),
    ("offsets.topic.replication.factor", "1"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
    ("default.replication.factor", "1"),
    ("min.insync.replicas", "1"),
    ("offsets.topic.num.partitions", "8"),
    ("transaction.state.log.num.partitions", "8"),
    ("share.coordinator.state.topic.num.partitions", "1"),
    ("num.network.threads", "2"),
    ("num.io.threads", "4"),
    ("num.replica.fetchers", "1"),
    ("background.threads", "2"),
    ("log.cleaner.dedupe.buffer.size", "16777216"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("auto.create.topics.enable", "false"),
    ("message.max.bytes", "8388608"),
    ("replica.fetch.max.bytes", "8388608"),
    // An abrupt end is normal here, and checking a log anew at start is what costs then.
    ("num.recovery.threads.per.data.dir", "2"),
];

/// `server.properties` for the ports, with `overrides` last.
pub(super) fn server(
    port: u16,
    controller_port: u16,
    data: &Path,
    overrides: &BTreeMap<String, String>,
) -> String {
    let mut settings: BTreeMap<&str, String> = OWN
        .iter()
        .map(|(key, value)| (*key, (*value).to_owned()))
        .collect();
    let listeners =
        format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}");
    settings.insert("listeners", listeners);
    settings.insert(
        "advertised.listeners",
        format!("PLAINTEXT://127.0.0.1:{port}"),
    );
    settings.insert(
        "controller.quorum.voters",
        format!("1@127.0.0.1:{controller_port}"),
    );
    settings.insert("log.dirs", data.display().to_string());
    settings.extend(
        overrides
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone())),
    );
    settings
        .iter()
        .map(|(key, value)| format!("{key}={}\n", value.replace('\\', "\\\\")))
        .collect()
}

/// Logs go to standard output, which is the log file.
pub(super) const LOG4J: &str = r#"Configuration:
  status: ERROR
  Appenders:
    Console:
      name: OUT
      PatternLayout:
        pattern: "[%d] %p %c{1}: %m%n"
  Loggers:
    Root:
      level: INFO
      AppenderRef:
        ref: OUT
    Logger:
      - name: org.reflections
        level: ERROR
      - name: org.apache.kafka.clients
        level: WARN
      - name: org.apache.kafka.common.utils.AppInfoParser
        level: WARN
"#;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::server;

    #[test]
    fn overrides_win_and_only_loopback_is_listened_on() {
        let overrides = BTreeMap::from([("num.io.threads".to_owned(), "9".to_owned())]);
        let text = server(1000, 1001, Path::new("/data"), &overrides);
        assert!(text.contains("num.io.threads=9\n"));
        assert!(!text.contains("num.io.threads=4\n"));
        assert!(
            text.contains("listeners=PLAINTEXT://127.0.0.1:1000,CONTROLLER://127.0.0.1:1001\n")
        );
        assert!(!text.contains("0.0.0.0"));
    }
}
