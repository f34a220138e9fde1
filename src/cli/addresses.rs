//! Where a verb finds Kafka, the gateway and the query node: a flag, then settings, then the running
//! `shoal up`, then the defaults.

use std::time::Duration;

use clap::Args;
use shoal_topic::kafka;

use super::Context;
use crate::running;

/// Somebody waits for the verb, so an absent broker is told sooner than to a role.
const PATIENCE: Duration = Duration::from_secs(8);

/// The flag of verbs that talk to Kafka.
#[derive(Clone, Debug, Args)]
pub(super) struct KafkaFlag {
    /// Kafka's brokers, host:port with commas between [default: that of the running `shoal up`]
    #[arg(long, value_name = "BROKERS")]
    pub(super) kafka: Option<String>,
}

/// The flag of verbs that ask a query node.
#[derive(Clone, Debug, Args)]
pub(super) struct QueryFlag {
    /// The query node's gRPC address, host:port [default: that of the running `shoal up`]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) query: Option<String>,
}

/// The flag of verbs that write through a gateway.
#[derive(Clone, Debug, Args)]
pub(super) struct GatewayFlag {
    /// The gateway's gRPC address, host:port [default: that of the running `shoal up`]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) gateway: Option<String>,
}

impl GatewayFlag {
    /// The gateway's address, `host:port`.
    pub(super) fn address(&self, context: &Context) -> String {
        if let Some(flag) = &self.gateway {
            return flag.clone();
        }
        let settings = &context.loaded.settings;
        let configured = settings.gateway.grpc_listen.to_string();
        if context.loaded.sets("gateway.grpc_listen") {
            return configured;
        }
        let running = running::find(&settings.local.data_dir);
        running.map_or(configured, |running| running.gateway.grpc.to_string())
    }
}

impl KafkaFlag {
    /// The clients' settings with the brokers in place.
    pub(super) fn config(&self, context: &Context) -> kafka::Config {
        let mut config = context.loaded.settings.kafka.clone();
        if let Some(flag) = &self.kafka {
            config.bootstrap.clone_from(flag);
        } else if !context.loaded.sets("kafka.bootstrap")
            && let Some(running) = running::find(&context.loaded.settings.local.data_dir)
        {
            config.bootstrap = running.kafka;
        }
        if !context.loaded.sets("kafka.request_timeout") {
            config.request_timeout = PATIENCE;
        }
        config
    }
}

impl QueryFlag {
    /// The query node's address, `host:port`.
    pub(super) fn address(&self, context: &Context) -> String {
        if let Some(flag) = &self.query {
            return flag.clone();
        }
        let settings = &context.loaded.settings;
        let configured = settings.query.grpc_listen.to_string();
        if context.loaded.sets("query.grpc_listen") {
            return configured;
        }
        let running = running::find(&settings.local.data_dir);
        running.map_or(configured, |running| running.query.grpc.to_string())
    }
}
