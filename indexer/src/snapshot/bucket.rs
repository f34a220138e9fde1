//! Object stores by URL: a local folder, S3, Google Cloud Storage, Azure. The only file that
//! names the crate `object_store`.
//!
//! Credentials, regions and endpoints come from the environment, by the names the clouds' own
//! tools use (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`,
//! `AZURE_STORAGE_ACCOUNT_NAME`, ...), never from our settings. Large files go up in parts; a
//! part's place among those that may be under way is taken before its bytes are read, so memory
//! is bounded for all uploads of a process together.

use std::{
    error::Error as StdError, fmt, fs::File, io, os::unix::fs::FileExt, path::Path as FilePath,
    sync::Arc, time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream::FuturesUnordered};
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
    aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder,
    local::LocalFileSystem, memory::InMemory, path::Path,
};
use shoal_runtime::tasks::blocking;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::snapshot::{
    store::{Answer, Cause, Chunks, Listed, Put, Store, StoreError},
    url::{Named, OpenError, Scheme, parse},
};

/// Largest part of an upload held in memory; a file up to this size goes up in one request.
const PART_BYTES: u64 = 8 << 20;
/// S3 takes 10,000 parts an object.
const MAX_PARTS: u64 = 9_000;
/// Parts under way at a time, over all uploads of one bucket: memory is this times a part.
const PARTS_AT_A_TIME: usize = 8;
/// How long one request is repeated by the client.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);
const REQUEST_REPEATS: usize = 4;
/// How long a request may make no progress. Not how long it may take: an object can be large.
const TIMEOUTS: [(&str, &str); 2] = [("timeout", "1 day"), ("read_timeout", "60 seconds")];

/// Objects under one prefix of one store. Cloning shares it.
#[derive(Clone)]
pub struct Bucket {
    name: String,
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    parts: Arc<Semaphore>,
    part_bytes: u64,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: it holds secrets.
        f.debug_tuple("Bucket").field(&self.name).finish()
    }
}

impl Bucket {
    /// The store of that URL. A local folder is made if it is not there; a cloud is not asked
    /// before the first call.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(url: &str) -> Result<Self, OpenError> {
        Self::open_with(url, &[])
    }

    /// As [`Bucket::open`], with variables that go before those of the environment.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_with(url: &str, variables: &[(&str, &str)]) -> Result<Self, OpenError> {
        let named = parse(url).ok_or_else(|| OpenError::Scheme { url: url.into() })?;
        let (scheme, bucket, prefix) = match named {
            Named::Folder(path) => return Self::in_folder(url, path),
            Named::Cloud {
                scheme,
                bucket,
                prefix,
            } => (scheme, bucket, prefix),
        };
        let retry = RetryConfig {
            max_retries: REQUEST_REPEATS,
            retry_timeout: REQUEST_PATIENCE,
            ..RetryConfig::default()
        };
        // The builders have this in common, but no trait.
        macro_rules! configured {
            ($builder:ty) => {
                TIMEOUTS.iter().chain(variables).fold(
                    <$builder>::from_env(),
                    |builder, (name, value)| match name.to_ascii_lowercase().parse() {
                        Ok(key) => builder.with_config(key, *value),
                        Err(_) => builder,
                    },
                )
            };
        }
        let opened: Result<Arc<dyn ObjectStore>, Error> = match scheme {
            Scheme::S3 => configured!(AmazonS3Builder)
                .with_bucket_name(bucket)
                .with_retry(retry)
                .build()
                .map(shared),
            Scheme::Google => configured!(GoogleCloudStorageBuilder)
                .with_bucket_name(bucket)
                .with_retry(retry)
                .build()
                .map(shared),
            Scheme::Azure => configured!(MicrosoftAzureBuilder)
                .with_container_name(bucket)
                .with_retry(retry)
                .build()
                .map(shared),
        };
        let inner = opened.map_err(|error| OpenError::Settings {
            url: url.into(),
            source: error.into(),
        })?;
        let prefix = Path::parse(prefix).map_err(|error| OpenError::Prefix {
            url: url.into(),
            source: error.into(),
        })?;
        Ok(Self::over(url, inner, prefix))
    }

    fn in_folder(url: &str, path: &FilePath) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Folder {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(failed)?;
        let local = LocalFileSystem::new_with_prefix(path)
            .map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self::over(
            url,
            Arc::new(local.with_fsync(true)),
            Path::default(),
        ))
    }

    /// A store in memory, for tests. Forgets everything when dropped.
    pub fn in_memory() -> Self {
        Self::over("memory", Arc::new(InMemory::new()), Path::default())
    }

    fn over(name: &str, inner: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self {
            name: name.to_owned(),
            inner,
            prefix,
            parts: Arc::new(Semaphore::new(PARTS_AT_A_TIME)),
            part_bytes: PART_BYTES,
        }
    }

    /// The same store with smaller parts: what a test of uploads in parts needs. No cloud takes
    /// parts below 5 MiB.
    #[must_use]
    pub fn with_part_bytes(self, part_bytes: u64) -> Self {
        Self { part_bytes, ..self }
    }

    fn path(&self, relative: &str) -> Result<Path, Error> {
        let relative = Path::parse(relative)?;
        Ok(self.prefix.parts().chain(relative.parts()).collect())
    }

    /// What is left of a name below the bucket's own prefix.
    fn relative(&self, path: &Path) -> Option<String> {
        let parts = path.prefix_match(&self.prefix)?;
        Some(parts.collect::<Path>().to_string())
    }

    fn failed(&self, doing: &'static str, object: &str, error: Error) -> StoreError {
        StoreError {
            store: self.name.clone(),
            object: object.to_owned(),
            doing,
            cause: cause_of(&error),
            source: Box::new(error),
        }
    }

    fn local_file(&self, object: &str, error: io::Error) -> StoreError {
        StoreError {
            store: self.name.clone(),
            object: object.to_owned(),
            doing: "upload",
            cause: Cause::LocalFile,
            source: Box::new(error),
        }
    }

    /// Reads a part, once it may be under way.
    async fn part(
        &self,
        file: &Arc<File>,
        from: u64,
        to: u64,
    ) -> io::Result<(Bytes, OwnedSemaphorePermit)> {
        let permit = self.parts.clone().acquire_owned().await;
        let permit = permit.expect("nothing closes the semaphore of parts");
        let len = usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?;
        let file = file.clone();
        let read = move || {
            let mut content = vec![0; len];
            file.read_exact_at(&mut content, from)?;
            Ok::<_, io::Error>(Bytes::from(content))
        };
        Ok((blocking(read).await?, permit))
    }

    async fn upload_parts(
        &self,
        object: &str,
        path: &Path,
        file: &Arc<File>,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let failed = |error| self.failed("upload", object, error);
        // All parts but the last have one size: some stores ask for it.
        let part_bytes = self.part_bytes.max(bytes.div_ceil(MAX_PARTS));
        let mut upload = self.inner.put_multipart(path).await.map_err(failed)?;
        let mut under_way = FuturesUnordered::new();
        let sent = async {
            let mut from = 0;
            while from < bytes {
                let to = from.saturating_add(part_bytes).min(bytes);
                let mut reading = std::pin::pin!(self.part(file, from, to));
                // Parts under way are looked after meanwhile: they hold the places waited for.
                let part = loop {
                    tokio::select! {
                        part = &mut reading => break part,
                        Some(done) = under_way.next() => done?,
                    }
                };
                let (content, permit) = part.map_err(|error| self.local_file(object, error))?;
                let sending = upload.put_part(PutPayload::from_bytes(content));
                under_way.push(async move {
                    let sent = sending.await;
                    drop(permit);
                    sent.map_err(failed)
                });
                from = to;
            }
            while let Some(done) = under_way.next().await {
                done?;
            }
            Ok(())
        };
        let outcome = match sent.await {
            Ok(()) => upload.complete().await.map(drop).map_err(failed),
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            // A part that arrives after the end would be kept.
            while under_way.next().await.is_some() {}
            // What is left of it costs money until a lifecycle rule of the bucket removes it.
            let _gone = upload.abort().await;
        }
        outcome
    }
}

fn shared(store: impl ObjectStore) -> Arc<dyn ObjectStore> {
    Arc::new(store)
}

/// Whether a store's words mean one of the few things a caller can do something about.
fn cause_of(error: &Error) -> Cause {
    match error {
        Error::NotFound { .. } => Cause::Missing,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Cause::Denied,
        Error::NotImplemented { .. }
        | Error::NotSupported { .. }
        | Error::InvalidPath { .. }
        | Error::UnknownConfigurationKey { .. } => Cause::Unusable,
        other => match io_kind(other) {
            Some(io::ErrorKind::PermissionDenied) => Cause::Denied,
            Some(io::ErrorKind::NotADirectory | io::ErrorKind::ReadOnlyFilesystem) => {
                Cause::Unusable
            }
            _ => Cause::Unreachable,
        },
    }
}

/// The kind of the system's own error beneath, if there is one.
fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found.kind());
        }
        cause = error.source();
    }
    None
}

impl Store for Bucket {
    fn name(&self) -> &str {
        &self.name
    }

    fn create<'a>(&'a self, path: &'a str, content: Bytes) -> Answer<'a, Put> {
        async move {
            let failed = |error| self.failed("create", path, error);
            let at = self.path(path).map_err(failed)?;
            let options = PutOptions::from(PutMode::Create);
            let put = self.inner.put_opts(&at, content.into(), options).await;
            match put {
                Ok(_) => Ok(Put::Created),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Put::Exists),
                Err(error) => Err(failed(error)),
            }
        }
        .boxed()
    }

    fn upload<'a>(&'a self, path: &'a str, file: Arc<File>, bytes: u64) -> Answer<'a, ()> {
        async move {
            let failed = |error| self.failed("upload", path, error);
            let at = self.path(path).map_err(failed)?;
            if bytes > self.part_bytes {
                return self.upload_parts(path, &at, &file, bytes).await;
            }
            let (content, _permit) = self
                .part(&file, 0, bytes)
                .await
                .map_err(|error| self.local_file(path, error))?;
            let put = self.inner.put(&at, PutPayload::from_bytes(content)).await;
            put.map(drop).map_err(failed)
        }
        .boxed()
    }

    fn read<'a>(&'a self, path: &'a str) -> Answer<'a, Chunks> {
        async move {
            let failed = |error| self.failed("read", path, error);
            let at = self.path(path).map_err(failed)?;
            let found = self.inner.get(&at).await.map_err(failed)?;
            let (this, path) = (self.clone(), path.to_owned());
            let chunks = found.into_stream();
            Ok(chunks
                .map_err(move |error| this.failed("read", &path, error))
                .boxed())
        }
        .boxed()
    }

    fn list<'a>(&'a self, folder: &'a str) -> Answer<'a, Vec<Listed>> {
        async move {
            let failed = |error| self.failed("list", folder, error);
            let at = self.path(folder).map_err(failed)?;
            let found: Vec<_> = self
                .inner
                .list(Some(&at))
                .try_collect()
                .await
                .map_err(failed)?;
            let listed = found.into_iter().filter_map(|meta| {
                Some(Listed {
                    path: self.relative(&meta.location)?,
                    bytes: meta.size,
                    stored_ms: u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0),
                })
            });
            let mut listed: Vec<_> = listed.collect();
            listed.sort();
            Ok(listed)
        }
        .boxed()
    }

    fn folders<'a>(&'a self, folder: &'a str) -> Answer<'a, Vec<String>> {
        async move {
            let failed = |error| self.failed("list", folder, error);
            let at = self.path(folder).map_err(failed)?;
            let found = self
                .inner
                .list_with_delimiter(Some(&at))
                .await
                .map_err(failed)?;
            let names = found.common_prefixes.iter();
            let mut names: Vec<_> = names
                .filter_map(|path| path.filename().map(str::to_owned))
                .collect();
            names.sort();
            Ok(names)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()> {
        async move {
            let failed = |error| self.failed("delete", path, error);
            let at = self.path(path).map_err(failed)?;
            match self.inner.delete(&at).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(failed(error)),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_runtime::chain;

    use super::{Bucket, OpenError};
    use crate::snapshot::store::Store as _;

    #[test]
    fn a_prefix_that_leads_elsewhere_is_refused() {
        for url in ["s3://bucket/a/../b", "s3://bucket/a//b"] {
            let error = Bucket::open(url).unwrap_err();
            assert!(matches!(error, OpenError::Prefix { .. }), "{error}");
        }
    }

    #[test]
    fn a_store_of_each_cloud_is_opened_by_its_url_and_variables() {
        let stores: [(&str, &[(&str, &str)]); 3] = [
            ("s3://bucket/prefix", &[("aws_region", "eu-west-1")]),
            ("gs://bucket/prefix", &[("google_skip_signature", "true")]),
            (
                "az://container/prefix",
                &[
                    ("azure_storage_account_name", "account"),
                    ("azure_storage_account_key", "a2V5"),
                ],
            ),
        ];
        for (url, variables) in stores {
            let opened = Bucket::open_with(url, variables);
            let opened = opened.unwrap_or_else(|error| panic!("{url}: {}", chain(&error)));
            assert_eq!(opened.name(), url);
        }
    }

    #[test]
    fn a_store_that_lacks_its_credentials_is_named_with_what_it_lacks() {
        let key = ("google_service_account_key", "no key at all");
        let refused = Bucket::open_with("gs://bucket/prefix", &[key]).unwrap_err();
        assert!(matches!(refused, OpenError::Settings { .. }), "{refused:?}");
        let told = chain(&refused).to_string();
        assert!(told.contains("gs://bucket/prefix"), "{told}");
    }
}
