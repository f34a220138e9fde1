//! One Kafka node of a test: started, stopped, killed and started again at the same port.

use std::path::PathBuf;

use shoal_topic::broker::{BrokerOptions, LocalBroker};

use super::place;

/// A real broker that may be down.
pub(crate) struct Kafka {
    options: BrokerOptions,
    running: Option<LocalBroker>,
}

impl Kafka {
    /// A broker that is not started yet; its address is known all the same.
    pub(crate) fn down(data_dir: PathBuf) -> Self {
        let mut options = BrokerOptions::new(data_dir);
        options.port = Some(place::free().port());
        options.heap_mib = 320;
        for (key, value) in [
            // Compaction within a test's patience.
            ("log.cleaner.backoff.ms", "100"),
            ("log.initial.task.delay.ms", "100"),
            ("log.retention.check.interval.ms", "1000"),
        ] {
            options.settings.insert(key.into(), value.into());
        }
        Self {
            options,
            running: None,
        }
    }

    /// Starts it, for the first time or again.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        assert!(self.running.is_none(), "the broker runs already");
        let started = LocalBroker::start(&self.options);
        self.running = Some(started.unwrap_or_else(|error| panic!("{error}")));
    }

    /// Ends it in good order.
    pub(crate) fn stop(&mut self) {
        self.running.take().expect("the broker runs").stop();
    }

    /// `host:port`.
    pub(crate) fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.options.port.unwrap())
    }
}
