//! Verifying a snapshot: is everything it names there, and is each byte what was stored.

use futures::{StreamExt, TryStreamExt, stream};

use crate::snapshot::{
    ReadError, Shelf,
    hash::Looker,
    manifest::StoredFile,
    restore::fault_of,
    store::{Cause, StoreError},
};

/// Something wrong with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The object.
    pub object: String,
    /// The file it holds; none for the manifest.
    pub path: Option<String>,
    /// What is wrong.
    pub detail: String,
}

/// What verifying found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The snapshot.
    pub number: u64,
    /// Files looked at.
    pub files: usize,
    /// Bytes they should have.
    pub bytes: u64,
    /// Everything wrong, by object.
    pub faults: Vec<Fault>,
}

impl Shelf {
    /// Reads every object of the snapshot of that number, or of the newest, as a whole.
    ///
    /// # Errors
    /// [`ReadError::None`] and [`ReadError::Store`]; damage is in the report.
    pub async fn verify(&self, number: Option<u64>) -> Result<Report, ReadError> {
        let number = match number {
            Some(number) => Some(number),
            None => self.numbers().await?.pop(),
        };
        let manifest = match (self.find(number).await, number) {
            (Ok(manifest), _) => manifest,
            (Err(ReadError::Damaged { object, detail, .. }), Some(number)) => {
                return Ok(Report {
                    number,
                    files: 0,
                    bytes: 0,
                    faults: vec![Fault {
                        object,
                        path: None,
                        detail,
                    }],
                });
            }
            (Err(error), _) => return Err(error),
        };
        let files: Vec<_> = manifest.files.iter().map(|one| self.fault(one)).collect();
        let faults: Vec<Option<Fault>> = stream::iter(files)
            .buffer_unordered(self.settings.files_at_a_time.max(1))
            .try_collect()
            .await?;
        let mut faults: Vec<Fault> = faults.into_iter().flatten().collect();
        faults.sort();
        Ok(Report {
            number: manifest.number,
            files: manifest.files.len(),
            bytes: manifest.bytes(),
            faults,
        })
    }

    async fn fault(&self, stored: &StoredFile) -> Result<Option<Fault>, StoreError> {
        let object = self.place.object(&stored.object);
        let read = || async {
            let mut chunks = self.store.read(&object).await?;
            let mut looker = Looker::default();
            while let Some(chunk) = chunks.try_next().await? {
                looker.take(&chunk);
            }
            Ok(fault_of(stored, looker))
        };
        let detail = match self.settings.retries.run(read).await {
            Ok(detail) => detail,
            Err(error) if error.cause == Cause::Missing => Some("it is not there".into()),
            Err(error) => return Err(error),
        };
        Ok(detail.map(|detail| Fault {
            object,
            path: Some(stored.file.path.clone()),
            detail,
        }))
    }
}
