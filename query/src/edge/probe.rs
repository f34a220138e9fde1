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
    fn new(config: &RegionConfig, client: Region) -> Self {
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
    }

    /// A call was refused for good.
    pub(super) fn refused(&self) {
        self.calls_refused.increment(1);
    }

    /// A call got nothing.
    pub(super) fn failed(&self, error: &RegionError) {
        self.calls_failed.increment(1);
        // One that is slow, or busy, is there all the same.
        if matches!(error, RegionError::Unreachable { .. }) {
            self.note(|health| health.failed(error.told()));
        }
    }

    fn note(&self, what: impl FnOnce(&mut Health)) {
        let (is_up, why, rtt_ms) = {
            let mut health = locked(&self.health);
            what(&mut health);
            (health.is_up(), health.why.clone(), health.rtt_ms)
        };
        if let Some(rtt_ms) = rtt_ms {
            self.rtt.set(rtt_ms);
        }
        self.reachable.set(f64::from(u8::from(is_up)));
        let has_changed = self.is_up.send_if_modified(|before| {
            let has_changed = *before != is_up;
            *before = is_up;
            has_changed
        });
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
        while self.reaches_any() == reaches_any {
            let changes = self.places.iter().map(|place| {
                let mut is_up = place.is_up.subscribe();
                let before = place.is_up();
                Box::pin(async move {
                    drop(is_up.wait_for(|is_up| *is_up != before).await);
                })
            });
            futures::future::select_all(changes).await;
        }
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
