//! The regions and how they fare: each is asked now and then whether it serves, and how far it is.

use std::{convert::Infallible, sync::Arc, sync::Mutex, time::Duration};

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};
use shoal_runtime::tasks::Tasks;
use tokio::sync::watch;
use tracing::{debug, info};

use super::{Config, Edge, RegionConfig, RegionState, choice::Health, locked};
use crate::{
    cache::Cache,
    client::regions::{Region, RegionError},
    metrics::{NETWORK_CROSS_REGION_RTT_MS, QUERY_EDGE_CALLS_TOTAL, QUERY_EDGE_REGION_REACHABLE},
};

/// Longest that a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// One region, and what is known of it.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(super) client: Region,
    address: String,
    health: Mutex<Health>,
    is_up: watch::Sender<bool>,
    rtt: Gauge,
    reachable: Gauge,
    calls_answered: Counter,
    calls_refused: Counter,
    calls_failed: Counter,
}

impl Place {
    pub(super) fn new(config: &RegionConfig, client: Region) -> Self {
        let RegionConfig { name, address } = config.clone();
        let calls = |outcome: &'static str| counter!(QUERY_EDGE_CALLS_TOTAL, "region" => name.clone(), "outcome" => outcome);
        Self {
            client,
            address,
            health: Mutex::default(),
            is_up: watch::Sender::new(false),
            rtt: gauge!(NETWORK_CROSS_REGION_RTT_MS, "region" => name.clone()),
            reachable: gauge!(QUERY_EDGE_REGION_REACHABLE, "region" => name.clone()),
            calls_answered: calls("answered"),
            calls_refused: calls("refused"),
            calls_failed: calls("failed"),
            name,
        }
    }

    pub(super) fn health(&self) -> Health {
        locked(&self.health).clone()
    }

    pub(super) fn is_up(&self) -> bool {
        *self.is_up.borrow()
    }

    pub(super) fn state(&self) -> RegionState {
        let health = self.health();
        RegionState {
            name: self.name.clone(),
            address: self.address.clone(),
            is_up: health.is_up(),
            rtt_ms: health.rtt_ms,
        }
    }

    /// Waits until the region is left alone; for ever if it is already.
    pub(super) async fn goes_down(&self) {
        let mut is_up = self.is_up.subscribe();
        if !*is_up.borrow_and_update() || is_up.wait_for(|is_up| !is_up).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A call was answered.
    pub(super) fn answered(&self) {
        self.calls_answered.increment(1);
        locked(&self.health).reached();
    }

    /// A call was refused for good.
    pub(super) fn refused(&self) {
        self.calls_refused.increment(1);
        locked(&self.health).reached();
    }

    /// A call got nothing.
    pub(super) fn failed(&self, error: &RegionError) {
        self.calls_failed.increment(1);
        match error {
            RegionError::Unreachable { .. } => self.note(|health| health.failed(error.told())),
            // One that is busy is there all the same; of one that is slow nobody knows.
            RegionError::Refused { .. } => locked(&self.health).reached(),
            RegionError::TimedOut => {}
        }
    }

    pub(super) fn note(&self, what: impl FnOnce(&mut Health)) {
        let (has_changed, is_up, why, rtt_ms) = {
            let mut health = locked(&self.health);
            what(&mut health);
            let is_up = health.is_up();
            // Under the lock, so that of two notes the later one is told last.
            let has_changed = self.is_up.send_if_modified(|before| {
                let has_changed = *before != is_up;
                *before = is_up;
                has_changed
            });
            (has_changed, is_up, health.why.clone(), health.rtt_ms)
        };
        if let Some(rtt_ms) = rtt_ms {
            self.rtt.set(rtt_ms);
        }
        self.reachable.set(f64::from(u8::from(is_up)));
        if has_changed {
            let (region, address) = (&self.name, &self.address);
            match is_up {
                true => info!(region, address, rtt_ms, "region is reached"),
                false => info!(region, address, why, "region is left alone"),
            }
        }
    }

    async fn probe(&self) {
        let probed = self.client.probe(PROBE_TIMEOUT).await;
        let probed = match probed {
            // The first one may have had to connect: that is no distance.
            Ok(_) if !self.is_up() => self.client.probe(PROBE_TIMEOUT).await,
            probed => probed,
        };
        match probed {
            Ok(took) => self.note(|health| health.answered(took)),
            Err(error) => {
                debug!(
                    region = self.name,
                    why = error.told(),
                    "probe got no answer"
                );
                self.note(|health| health.failed(error.told()));
            }
        }
    }
}

impl Edge {
    /// Begins to probe the regions.
    ///
    /// # Errors
    /// What is wrong with an address.
    pub(crate) fn start(
        config: &Config,
        connect_timeout: Duration,
        max_message_bytes: usize,
        cache: Option<Arc<Cache>>,
        shares: bool,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, String> {
        describe();
        let mut places = Vec::with_capacity(config.regions.len());
        for region in &config.regions {
            let client = Region::new(&region.address, connect_timeout, max_message_bytes)?;
            places.push(Arc::new(Place::new(region, client)));
        }
        for place in &places {
            let (place, cancel) = (place.clone(), tasks.cancel().clone());
            let interval = config.probe_interval;
            tasks.spawn(format!("query region {}", place.name), async move {
                while !cancel.is_cancelled() {
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => break,
                        () = place.probe() => {}
                    }
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => break,
                        () = tokio::time::sleep(interval) => {}
                    }
                }
                Ok::<_, Infallible>(())
            });
        }
        Ok(Arc::new(Self::of(config, places, cache, shares)))
    }

    /// Waits until some region is reached, or until none is any more.
    pub(crate) async fn changes(&self, reaches_any: bool) {
        let are_up = self.places.iter().map(|place| place.is_up.subscribe());
        until(are_up.collect(), || self.reaches_any() != reaches_any).await;
    }
}

/// Waits until something holds that rests on these values, whose newest are taken for seen: so what
/// changes after a look wakes it, and it looks again.
async fn until(mut values: Vec<watch::Receiver<bool>>, holds: impl Fn() -> bool) {
    while !holds() {
        let changes = values.iter_mut().map(|value| Box::pin(value.changed()));
        drop(futures::future::select_all(changes).await);
    }
}

fn describe() {
    describe_gauge!(
        NETWORK_CROSS_REGION_RTT_MS,
        Unit::Milliseconds,
        "time to a region and back, smoothed"
    );
    describe_gauge!(
        QUERY_EDGE_REGION_REACHABLE,
        "1 while a region is asked, 0 while it is left alone"
    );
    describe_counter!(QUERY_EDGE_CALLS_TOTAL, "calls forwarded to a region");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use tokio::sync::watch;

    use super::{Place, until};
    use crate::{
        client::regions::{Region, RegionError},
        edge::RegionConfig,
    };

    #[tokio::test]
    async fn a_region_that_answers_between_two_lost_calls_is_not_left_alone() {
        let config = RegionConfig {
            name: "eu-1".into(),
            address: "127.0.0.1:1".into(),
        };
        let client = Region::new(&config.address, Duration::from_secs(1), 1 << 20).unwrap();
        let place = Place::new(&config, client);
        place.note(|health| health.answered(Duration::from_millis(1)));
        let lost = RegionError::Unreachable {
            detail: "planted".into(),
        };
        let refused = RegionError::Refused {
            code: 14,
            message: "planted".into(),
            retry_after: None,
        };
        let reaches: [&dyn Fn(); 3] = [&|| place.answered(), &|| place.refused(), &|| {
            place.failed(&refused)
        }];
        for reach in reaches {
            place.failed(&lost);
            reach();
            assert!(place.is_up());
        }
        place.failed(&lost);
        place.failed(&RegionError::TimedOut);
        assert!(place.is_up());
        place.failed(&lost);
        assert!(!place.is_up());
    }

    #[tokio::test]
    async fn what_changes_right_after_the_look_is_not_missed() {
        let value = watch::Sender::new(false);
        let holds = || value.send_replace(true);
        let waited = until(vec![value.subscribe()], holds);
        let waited = tokio::time::timeout(Duration::from_secs(60), waited).await;
        assert!(waited.is_ok());
    }
}
