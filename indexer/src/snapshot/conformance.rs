//! What every [`Store`] has to do. Each implementation's tests call [`all`].
//!
//! Every check works below a folder of its own, so a suite may run in a store that others use. A
//! check fails by panicking, with what it wanted.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a suite of tests fails by panicking"
)]

use std::{
    fs::File,
    io::{Seek, Write},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures::{TryStreamExt, future::join_all};
use shoal_runtime::ErrorKind;

use crate::snapshot::store::{Cause, Put, Store, StoreError};

/// Runs every check below `folder`. `scratch` is an empty file; uploads are to be larger than a
/// part at `large_bytes`.
pub async fn all(store: &Arc<dyn Store>, folder: &str, scratch: &File, large_bytes: usize) {
    a_name_is_taken_once(&**store, &format!("{folder}/once")).await;
    of_many_that_take_a_name_at_once_one_is_told_so(store, &format!("{folder}/race")).await;
    an_upload_is_read_back(store, &format!("{folder}/upload"), scratch, large_bytes).await;
    a_listing_shows_what_is_below_a_folder(&**store, &format!("{folder}/list")).await;
    what_is_deleted_is_gone_and_its_name_is_free(&**store, &format!("{folder}/delete")).await;
    what_is_missing_is_named(&**store, &format!("{folder}/missing")).await;
}

async fn content(store: &dyn Store, path: &str) -> Result<Bytes, StoreError> {
    let whole: BytesMut = store.read(path).await?.try_collect().await?;
    Ok(whole.freeze())
}

async fn a_name_is_taken_once(store: &dyn Store, folder: &str) {
    let path = format!("{folder}/a.json");
    let put = store.create(&path, "first".into()).await.unwrap();
    assert_eq!(put, Put::Created);
    let put = store.create(&path, "second".into()).await.unwrap();
    assert_eq!(put, Put::Exists);
    assert_eq!(content(store, &path).await.unwrap(), "first");
}

async fn of_many_that_take_a_name_at_once_one_is_told_so(store: &Arc<dyn Store>, folder: &str) {
    for round in 0..5 {
        let path = format!("{folder}/{round}");
        let all = (0..8).map(|n| {
            let (store, path) = (store.clone(), path.clone());
            let handle = tokio::runtime::Handle::current();
            tokio::task::spawn_blocking(move || {
                handle.block_on(store.create(&path, format!("writer {n}").into()))
            })
        });
        let told: Vec<Put> = join_all(all)
            .await
            .into_iter()
            .map(|told| told.unwrap().unwrap())
            .collect();
        let winners: Vec<usize> = (0..8).filter(|n| told[*n] == Put::Created).collect();
        assert_eq!(winners.len(), 1, "round {round}: {told:?}");
        let there = content(&**store, &path).await.unwrap();
        assert_eq!(there, format!("writer {}", winners[0]));
    }
}

async fn an_upload_is_read_back(
    store: &Arc<dyn Store>,
    folder: &str,
    mut scratch: &File,
    large_bytes: usize,
) {
    let pattern: Vec<u8> = (0..=250u8).collect();
    let large: Vec<u8> = pattern.iter().copied().cycle().take(large_bytes).collect();
    scratch.set_len(0).unwrap();
    scratch.rewind().unwrap();
    scratch.write_all(&large).unwrap();
    let file = Arc::new(scratch.try_clone().unwrap());
    for bytes in [0, 1, 1000, large_bytes - 1, large_bytes] {
        let path = format!("{folder}/{bytes}");
        let len = u64::try_from(bytes).unwrap();
        store.upload(&path, file.clone(), len).await.unwrap();
        let there = content(&**store, &path).await.unwrap();
        assert_eq!(there.len(), bytes, "{path}");
        assert!(there == large[..bytes], "{path} came back changed");
    }
    // In place of what was there.
    let path = format!("{folder}/1000");
    store.upload(&path, file.clone(), 7).await.unwrap();
    assert_eq!(content(&**store, &path).await.unwrap(), large[..7]);
    // A file that is shorter than it is said to be leaves no object.
    let path = format!("{folder}/short");
    let len = u64::try_from(large_bytes).unwrap() + 1;
    let error = store.upload(&path, file, len).await.unwrap_err();
    assert_eq!(error.cause, Cause::LocalFile, "{error}");
    assert_eq!(
        content(&**store, &path).await.unwrap_err().cause,
        Cause::Missing
    );
}

async fn a_listing_shows_what_is_below_a_folder(store: &dyn Store, folder: &str) {
    assert_eq!(store.list(folder).await.unwrap(), []);
    assert_eq!(store.folders(folder).await.unwrap(), Vec::<String>::new());
    for name in ["b/2/x", "b/10/x", "b/1", "bb/y", "a"] {
        let path = format!("{folder}/{name}");
        let put = store.create(&path, Bytes::from_static(b"abc")).await;
        assert_eq!(put.unwrap(), Put::Created);
    }
    let listed = store.list(&format!("{folder}/b")).await.unwrap();
    let names: Vec<_> = listed
        .iter()
        .map(|one| one.path.strip_prefix(&format!("{folder}/")).unwrap())
        .collect();
    assert_eq!(names, ["b/1", "b/10/x", "b/2/x"]);
    assert!(listed.iter().all(|one| one.bytes == 3 && one.stored_ms > 0));
    let deep = format!("{folder}/b");
    assert_eq!(store.folders(&deep).await.unwrap(), ["10", "2"]);
    assert_eq!(store.folders(folder).await.unwrap(), ["b", "bb"]);
}

async fn what_is_deleted_is_gone_and_its_name_is_free(store: &dyn Store, folder: &str) {
    let path = format!("{folder}/a");
    store.create(&path, "first".into()).await.unwrap();
    store.delete(&path).await.unwrap();
    assert_eq!(store.list(folder).await.unwrap(), []);
    store.delete(&path).await.unwrap();
    let put = store.create(&path, "second".into()).await.unwrap();
    assert_eq!(put, Put::Created);
}

async fn what_is_missing_is_named(store: &dyn Store, folder: &str) {
    let path = format!("{folder}/not-there");
    let error = content(store, &path).await.unwrap_err();
    assert_eq!(
        (error.cause, error.kind()),
        (Cause::Missing, ErrorKind::Caller)
    );
    let text = error.to_string();
    assert!(
        text.contains(&path) && text.contains(store.name()),
        "{text}"
    );
}
