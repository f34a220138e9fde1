//! What every [`Store`] has to do. Each implementation's tests call [`all`].
//!
//! Names are drawn at random, so a suite may run in a store that others use.
#![allow(clippy::unwrap_used, reason = "a suite of tests fails by panicking")]

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use bytes::Bytes;
use shoal_runtime::clock::Stopwatch;

use super::{Key, KeyOf, Store};

const LONG: Duration = Duration::from_secs(600);
/// Longest that a store may take to forget.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs every check.
pub(crate) async fn all(store: &dyn Store) {
    what_is_kept_is_found_byte_by_byte(store).await;
    a_second_value_takes_the_place_of_the_first(store).await;
    nothing_is_found_under_another_name(store).await;
    a_value_is_forgotten_after_its_time(store).await;
}

fn new_key() -> Key {
    let random = RandomState::new().hash_one(0);
    KeyOf::new("test").with(random.to_le_bytes()).finish()
}

async fn what_is_kept_is_found_byte_by_byte(store: &dyn Store) {
    let every_byte: Bytes = (0..=u8::MAX).cycle().take(10_000).collect();
    for value in [Bytes::new(), Bytes::from_static(b"\r\n"), every_byte] {
        let key = new_key();
        assert_eq!(store.find(key).await.unwrap(), None);
        store.keep(key, value.clone(), LONG).await.unwrap();
        assert_eq!(store.find(key).await.unwrap(), Some(value.clone()));
        assert_eq!(store.find(key).await.unwrap(), Some(value));
    }
}

async fn a_second_value_takes_the_place_of_the_first(store: &dyn Store) {
    let key = new_key();
    for value in ["first, and long", "second"] {
        store.keep(key, value.into(), LONG).await.unwrap();
        assert_eq!(store.find(key).await.unwrap(), Some(value.into()));
    }
}

async fn nothing_is_found_under_another_name(store: &dyn Store) {
    store.keep(new_key(), "a".into(), LONG).await.unwrap();
    assert_eq!(store.find(new_key()).await.unwrap(), None);
}

async fn a_value_is_forgotten_after_its_time(store: &dyn Store) {
    let key = new_key();
    store
        .keep(key, "short".into(), Duration::from_millis(1))
        .await
        .unwrap();
    let watch = Stopwatch::start();
    while store.find(key).await.unwrap().is_some() {
        assert!(watch.elapsed() < DEADLINE, "it is still there");
        tokio::task::yield_now().await;
    }
}
