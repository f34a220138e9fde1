//! Kept answers as the rest of the node sees them: memory in front of Redis.
//!
//! A look costs a table's look-up, and where that finds nothing a call to Redis. Keeping costs the
//! caller nothing more than the bytes: what goes to Redis waits in a queue for a task of its own,
//! and what finds the queue full is not sent there.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use shoal_runtime::{clock::Clock, tasks::Tasks};
use tokio::sync::mpsc;
use tracing::debug;

use super::{
    AddressError, Config, Dated, Key, Store, StoreError,
    guard::Guard,
    memory::Memory,
    meters::{Meters, Tier},
    remote::Redis,
    value,
};
use crate::call::Deadline;

/// Values on their way to Redis. Full refuses: it is only a cache.
const QUEUE: usize = 1024;
/// The part of the time left to a call that it waits for Redis: one of so many. A Redis that hangs is
/// found out by what is sent to it, which has all of `redis_timeout`.
const REDIS_PART: u32 = 10;

/// The kept answers of this node.
pub(crate) struct Cache {
    /// How old an answer may be that is given without asking; zero for none.
    pub(crate) ttl: Duration,
    pub(crate) meters: Meters,
    memory: Option<Memory>,
    remote: Option<Remote>,
    time: Duration,
    largest: usize,
    clock: Arc<dyn Clock>,
}

struct Remote {
    store: Arc<dyn Store>,
    queue: mpsc::Sender<(Key, Bytes)>,
}

impl Cache {
    /// What the settings say; `None` if nothing is to be kept.
    ///
    /// # Errors
    /// [`AddressError`] of Redis.
    pub(crate) fn start(
        config: &Config,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Option<Arc<Self>>, AddressError> {
        if !config.keeps() {
            return Ok(None);
        }
        let (certificates, patience) = (config.redis_ca.as_deref(), config.redis_timeout);
        let redis = config.redis.as_deref();
        let redis = redis.map(|address| Redis::new(address, certificates, patience));
        let redis = redis.transpose()?;
        let store = redis.map(|redis| -> Arc<dyn Store> {
            Arc::new(Guard::new(redis, config.redis_timeout, clock.clone()))
        });
        Ok(Some(Arc::new(Self::over(config, store, clock, tasks))))
    }

    /// The same over any store in Redis' place.
    pub(super) fn over(
        config: &Config,
        store: Option<Arc<dyn Store>>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Self {
        let bytes = |size: bytesize::ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        let memory = bytes(config.memory);
        Self {
            ttl: config.ttl,
            meters: Meters::new(),
            memory: (memory > 0).then(|| Memory::new(memory, clock.clone())),
            remote: store.map(|store| Remote::start(store, config.keep, tasks)),
            time: config.keep,
            largest: bytes(config.largest),
            clock,
        }
    }

    /// What is kept under a name. One that is not `good` any more is looked for in Redis too, where
    /// another node may have kept a newer one.
    pub(crate) async fn find<M: Dated>(
        &self,
        key: Key,
        deadline: Deadline,
        good: impl Fn(&M) -> bool,
    ) -> Option<M> {
        let own: Option<M> = self.find_in_memory(key);
        if own.as_ref().is_some_and(&good) {
            self.meters.found(Tier::Memory);
            return own;
        }
        match self.find_in_redis(key, deadline).await {
            None => own,
            Some((found, bytes)) => Some(self.newest(key, found, bytes)),
        }
    }

    fn find_in_memory<M: Dated>(&self, key: Key) -> Option<M> {
        let bytes = self.memory.as_ref()?.look_up(key)?;
        value::decode(&key, &bytes)
    }

    async fn find_in_redis<M: Dated>(&self, key: Key, deadline: Deadline) -> Option<(M, Bytes)> {
        let remote = self.remote.as_ref()?;
        let waited = deadline.remaining() / REDIS_PART;
        let found = tokio::time::timeout(waited, remote.store.find(key)).await;
        let found = found.unwrap_or(Err(StoreError::TimedOut { waited }));
        let bytes = match found {
            Ok(found) => found?,
            Err(error) => {
                debug!(%error, "kept answer is not looked up");
                self.meters.store_failed();
                return None;
            }
        };
        let read = value::decode(&key, &bytes)?;
        self.meters.found(Tier::Redis);
        Some((read, bytes))
    }

    /// What Redis had, or what this node has by now where that is newer; the node has it from then on.
    fn newest<M: Dated>(&self, key: Key, found: M, bytes: Bytes) -> M {
        let Some(memory) = &self.memory else {
            return found;
        };
        // Looked up once more: another call may have kept one while Redis was asked.
        let (newest, bytes) = match self.find_in_memory::<M>(key) {
            None => (found, Some(bytes)),
            Some(mut own) => {
                let is_newer = own.take_newer(found, self.now_ms());
                let bytes = is_newer.then(|| value::encode(&key, &own));
                (own, bytes)
            }
        };
        if let Some(bytes) = bytes {
            self.meters.forgot(memory.insert(key, bytes, self.time));
        }
        newest
    }

    /// Keeps an answer.
    pub(crate) fn keep(&self, key: Key, answer: &impl Message) {
        if answer.encoded_len() > self.largest {
            return;
        }
        let bytes = value::encode(&key, answer);
        if let Some(memory) = &self.memory {
            self.meters
                .forgot(memory.insert(key, bytes.clone(), self.time));
        }
        if let Some(remote) = &self.remote
            && remote.queue.try_send((key, bytes)).is_err()
        {
            self.meters.store_failed();
        }
    }

    /// Wall time, milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// How old something is that was asked for at that time; `None` if that lies ahead, by the
    /// clock of another node.
    pub(crate) fn age(&self, asked_ms: u64) -> Option<Duration> {
        let age_ms = self.now_ms().checked_sub(asked_ms)?;
        Some(Duration::from_millis(age_ms))
    }

    /// Whether something that expires then has expired; 0 never does.
    pub(crate) fn has_expired(&self, expires_at_ms: i64) -> bool {
        let now_ms = i64::try_from(self.now_ms()).unwrap_or(i64::MAX);
        expires_at_ms != 0 && expires_at_ms <= now_ms
    }
}

impl Remote {
    fn start(store: Arc<dyn Store>, time: Duration, tasks: &Tasks) -> Self {
        let (queue, mut waiting) = mpsc::channel(QUEUE);
        let (to, cancel) = (store.clone(), tasks.cancel().clone());
        tasks.spawn("query kept answers", async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = cancel.cancelled() => None,
                    next = waiting.recv() => next,
                };
                let Some((key, bytes)) = next else {
                    break;
                };
                if let Err(error) = to.keep(key, bytes, time).await {
                    debug!(%error, "answer is not kept");
                }
            }
            Ok::<_, Infallible>(())
        });
        Self { store, queue }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        pin::pin,
        sync::Arc,
        task::{Context, Waker},
        time::Duration,
    };

    use bytes::Bytes;
    use bytesize::ByteSize;
    use futures::future::{BoxFuture, FutureExt as _, ready};
    use shoal_runtime::{
        clock::{Clock, Manual, Stopwatch, System},
        tasks::Tasks,
    };
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::Cache;
    use crate::{
        cache::{
            Config, KeptAnswer, Key, KeyOf, Store, StoreError,
            faulty::{Fault, Faulty},
            memory::Memory,
            value,
        },
        call::Deadline,
    };

    const DEADLINE: Duration = Duration::from_secs(60);

    fn is_good(_: &KeptAnswer) -> bool {
        true
    }

    fn key() -> Key {
        KeyOf::new("test").finish()
    }

    fn answer(length: usize) -> KeptAnswer {
        KeptAnswer {
            message: Bytes::from(vec![7; length]),
            ..KeptAnswer::default()
        }
    }

    /// One that was asked for at that time.
    fn asked_at(asked_ms: u64) -> KeptAnswer {
        KeptAnswer {
            asked_ms,
            ..answer(3)
        }
    }

    fn patient() -> Deadline {
        Deadline::within(DEADLINE * 10)
    }

    /// A node's cache with memory or without, over what stands for Redis.
    fn cache<S: Store + Clone + 'static>(
        memory: u64,
        store: &S,
        clock: Arc<dyn Clock>,
    ) -> (Cache, Tasks) {
        let config = Config {
            memory: ByteSize(memory),
            largest: ByteSize::kib(1),
            ..Config::default()
        };
        let tasks = Tasks::new(CancellationToken::new());
        let cache = Cache::over(&config, Some(Arc::new(store.clone())), clock, &tasks);
        (cache, tasks)
    }

    async fn reaches(store: &Arc<Faulty<Memory>>) {
        let watch = Stopwatch::start();
        while store.find(key()).await.unwrap().is_none() {
            assert!(watch.elapsed() < DEADLINE, "nothing reaches the store");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_one_node_keeps_another_finds_and_then_has_itself() {
        let clock = System::shared();
        let store = Arc::new(Faulty::new(Memory::new(1 << 20, clock.clone())));
        let (one, _one) = cache(1 << 20, &store, clock.clone());
        let (other, _other) = cache(1 << 20, &store, clock);
        let nothing = one.find::<KeptAnswer>(key(), patient(), is_good).await;
        assert_eq!(nothing, None);
        one.keep(key(), &answer(3));
        reaches(&store).await;
        assert_eq!(other.find(key(), patient(), is_good).await, Some(answer(3)));
        let asked = store.asked();
        assert_eq!(other.find(key(), patient(), is_good).await, Some(answer(3)));
        assert_eq!(store.asked(), asked);
    }

    #[tokio::test]
    async fn a_store_that_fails_or_holds_nonsense_holds_nothing() {
        let clock = System::shared();
        let store = Arc::new(Faulty::new(Memory::new(1 << 20, clock.clone())));
        let (cache, _tasks) = cache(0, &store, clock);
        cache.keep(key(), &answer(3));
        reaches(&store).await;
        for fault in [Fault::Fails, Fault::Garbles] {
            store.set(Some(fault));
            let found = cache.find::<KeptAnswer>(key(), patient(), is_good).await;
            assert_eq!(found, None);
        }
        store.set(None);
        assert_eq!(cache.find(key(), patient(), is_good).await, Some(answer(3)));
    }

    #[tokio::test]
    async fn what_is_too_large_is_not_kept_and_nobody_waits_for_a_store_that_hangs() {
        let clock = Manual::at(0);
        let store = Arc::new(Faulty::new(Memory::new(1 << 20, clock.clone())));
        let (cache, _tasks) = cache(1 << 20, &store, clock);
        cache.keep(key(), &answer(2000));
        let nothing = cache.find::<KeptAnswer>(key(), patient(), is_good).await;
        assert_eq!(nothing, None);
        store.set(Some(Fault::Hangs));
        for _ in 0..3000 {
            cache.keep(key(), &answer(3));
        }
        assert_eq!(cache.find(key(), patient(), is_good).await, Some(answer(3)));
    }

    #[tokio::test]
    async fn who_has_little_time_waits_little_for_a_store_that_hangs() {
        let clock = System::shared();
        let store = Arc::new(Faulty::new(Memory::new(1 << 20, clock.clone())));
        let (cache, _tasks) = cache(0, &store, clock);
        store.set(Some(Fault::Hangs));
        let hasty = Deadline::within(Duration::from_millis(100));
        let found = cache.find::<KeptAnswer>(key(), hasty, is_good);
        assert_eq!(tokio::time::timeout(DEADLINE, found).await, Ok(None));
    }

    #[tokio::test]
    async fn of_what_both_have_the_newer_one_stays() {
        let clock = Manual::at(100);
        let store = Arc::new(Faulty::new(Memory::new(1 << 20, clock.clone())));
        let (cache, tasks) = cache(1 << 20, &store, clock);
        // Nothing goes to the store but what stands here.
        tasks.cancel().cancel();
        cache.keep(key(), &asked_at(7));
        for (there, newest) in [(5, 7), (9, 9), (8, 9), (200, 9)] {
            let bytes = value::encode(&key(), &asked_at(there));
            store.keep(key(), bytes, DEADLINE).await.unwrap();
            let found = cache.find(key(), patient(), |_: &KeptAnswer| false).await;
            assert_eq!(found, Some(asked_at(newest)));
            let held = cache.find(key(), patient(), is_good).await;
            assert_eq!(held, Some(asked_at(newest)));
        }
    }

    /// A store that has one value and takes its time.
    #[derive(Clone)]
    struct Slow {
        value: Bytes,
        gate: Arc<Semaphore>,
    }

    impl Store for Slow {
        fn find(&self, _key: Key) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
            async {
                self.gate.acquire().await.unwrap().forget();
                Ok(Some(self.value.clone()))
            }
            .boxed()
        }

        fn keep(&self, _: Key, _: Bytes, _: Duration) -> BoxFuture<'_, Result<(), StoreError>> {
            ready(Ok(())).boxed()
        }
    }

    #[tokio::test]
    async fn what_is_kept_while_the_store_is_asked_is_not_replaced_by_an_older_one() {
        let slow = Slow {
            value: value::encode(&key(), &asked_at(5)),
            gate: Arc::new(Semaphore::new(0)),
        };
        let (cache, _tasks) = cache(1 << 20, &slow, Manual::at(100));
        let mut found = pin!(cache.find(key(), patient(), is_good));
        let mut context = Context::from_waker(Waker::noop());
        assert!(found.as_mut().poll(&mut context).is_pending());
        cache.keep(key(), &asked_at(7));
        slow.gate.add_permits(1);
        assert_eq!(found.await, Some(asked_at(7)));
        assert_eq!(
            cache.find(key(), patient(), is_good).await,
            Some(asked_at(7))
        );
    }
}
