//! A snapshot's manifest: one line of JSON and its checksum.
//!
//! It wraps the checkpoint's own manifest without reading it, and says of each file which object
//! holds it. Whatever a store gives back is checked here before anything of it is used: the
//! checksum, the number, and that no path leads out of the folder restored into.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use shoal_schemas::digest::Digest;

use crate::snapshot::{Content, Owner, ShardPlace, SnapshotFile, SourceNext, hash::ObjectName};

const FORMAT: u32 = 1;

/// A file of a snapshot, and where its content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// What it is in the shard's folder.
    #[serde(flatten)]
    pub file: SnapshotFile,
    /// The object that holds it.
    pub object: ObjectName,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Its number; a later snapshot has a higher one.
    pub number: u64,
    /// The shard it is of, for whoever looks at it alone.
    pub shard: String,
    /// Who took it.
    pub owner: Owner,
    /// See [`Content::taken_ms`].
    pub taken_ms: u64,
    /// See [`Content::points`].
    pub points: u64,
    digest: String,
    /// See [`Content::checkpoint`].
    pub checkpoint: Vec<SourceNext>,
    /// All files but the checkpoint's manifest.
    pub files: Vec<StoredFile>,
    /// See [`Content::manifest_path`].
    pub manifest_path: String,
    manifest: String,
}

impl Manifest {
    pub(super) fn new(
        number: u64,
        place: &ShardPlace,
        owner: &Owner,
        content: &Content,
        objects: Vec<ObjectName>,
    ) -> Self {
        let files = content.files.iter().zip(objects);
        Self {
            format: FORMAT,
            number,
            shard: place.folder(),
            owner: owner.clone(),
            taken_ms: content.taken_ms,
            points: content.points,
            digest: content.digest.to_string(),
            checkpoint: content.checkpoint.clone(),
            files: files
                .map(|(file, object)| StoredFile {
                    file: file.clone(),
                    object,
                })
                .collect(),
            manifest_path: content.manifest_path.clone(),
            manifest: BASE64_STANDARD.encode(&content.manifest),
        }
    }

    /// Bytes of all files, each object counted once a file.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|one| one.file.bytes).sum()
    }

    /// The digest, in hexadecimal digits.
    pub fn digest_text(&self) -> &str {
        &self.digest
    }

    /// What the snapshot is of.
    ///
    /// # Errors
    /// What of it does not read.
    pub fn content(&self) -> Result<Content, String> {
        let manifest = BASE64_STANDARD.decode(&self.manifest);
        let manifest = manifest.map_err(|error| format!("the checkpoint's manifest: {error}"))?;
        let digest = u128::from_str_radix(&self.digest, 16);
        let digest = digest.map_err(|error| format!("the digest: {error}"))?;
        Ok(Content {
            manifest_path: self.manifest_path.clone(),
            manifest,
            files: self.files.iter().map(|one| one.file.clone()).collect(),
            digest: Digest::from_bytes(digest.to_be_bytes()),
            checkpoint: self.checkpoint.clone(),
            taken_ms: self.taken_ms,
            points: self.points,
        })
    }

    /// The bytes it is stored as.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = serde_json::to_vec(self).expect("a manifest is numbers and text");
        let mark = format!("\n{:08x}\n", crc32fast::hash(&body));
        body.extend_from_slice(mark.as_bytes());
        body
    }

    /// Reads what [`Manifest::encode`] wrote under `number`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(bytes: &[u8], number: u64) -> Result<Self, String> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (body, mark) = end
            .map(|end| bytes.split_at(end))
            .ok_or("it has one line, two are written")?;
        let expected = format!("\n{:08x}\n", crc32fast::hash(body));
        if mark != expected.as_bytes() {
            return Err("its checksum does not fit".into());
        }
        // Before the rest: a later format may have other fields.
        let Format { format } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if format != FORMAT {
            return Err(format!("format is {format}, this version reads {FORMAT}"));
        }
        let manifest: Self = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if manifest.number != number {
            return Err(format!("it calls itself number {}", manifest.number));
        }
        let content = manifest.content()?;
        fault_of_paths(&content).map_or(Ok(()), Err)?;
        match manifest
            .files
            .iter()
            .find(|one| one.object.bytes() != one.file.bytes)
        {
            Some(one) => Err(format!("`{}` has two lengths", one.file.path)),
            None => Ok(manifest),
        }
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// What is wrong with the paths of a snapshot; `None` if each is one file below the folder.
pub(super) fn fault_of_paths(content: &Content) -> Option<String> {
    let files = content.files.iter().map(|file| &file.path);
    let mut seen = std::collections::HashSet::new();
    for path in files.chain([&content.manifest_path]) {
        let is_plain = path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'));
        if !is_plain {
            return Some(format!("path `{path}` leads elsewhere"));
        }
        if !seen.insert(path) {
            return Some(format!("path `{path}` is named twice"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;
    use shoal_schemas::{Offset, Partition, Source, digest::Digest};

    use super::Manifest;
    use crate::snapshot::{Content, Owner, ShardPlace, SnapshotFile, SourceNext, hash::Looker};

    fn content(paths: &[&str], manifest: Vec<u8>, digest: [u8; 16]) -> Content {
        Content {
            manifest_path: "checkpoint/manifest-1.json".into(),
            manifest,
            files: paths
                .iter()
                .map(|path| SnapshotFile {
                    path: (*path).to_owned(),
                    bytes: 0,
                    crc32: 0,
                })
                .collect(),
            digest: Digest::from_bytes(digest),
            checkpoint: vec![SourceNext {
                source: Source {
                    cluster: "c".into(),
                    topic: "embeddings.docs".into(),
                    partition: Partition(3),
                },
                next: Offset(17),
                topic_id: None,
            }],
            taken_ms: 5,
            points: 7,
        }
    }

    fn manifest(content: &Content) -> Manifest {
        let place = ShardPlace {
            collection: "docs".parse().unwrap(),
            incarnation: Offset(4),
            shard: Partition(3),
        };
        let owner = Owner {
            node: "a".into(),
            epoch: Offset(9),
        };
        let empty = Looker::default().look().object;
        let objects = vec![empty; content.files.len()];
        Manifest::new(2, &place, &owner, content, objects)
    }

    #[test]
    fn a_path_that_leads_out_of_the_folder_is_refused() {
        for bad in ["/etc/x", "a/../../x", "..", "", "a//b", "./a"] {
            let stored = manifest(&content(&[bad], Vec::new(), [0; 16])).encode();
            let fault = Manifest::decode(&stored, 2).unwrap_err();
            assert!(fault.contains("leads elsewhere"), "{bad}: {fault}");
        }
        let twice = manifest(&content(&["a", "a"], Vec::new(), [0; 16])).encode();
        assert!(Manifest::decode(&twice, 2).unwrap_err().contains("twice"));
    }

    #[test]
    fn another_number_or_format_is_refused_by_name() {
        let stored = manifest(&content(&[], Vec::new(), [0; 16])).encode();
        assert!(
            Manifest::decode(&stored, 3)
                .unwrap_err()
                .contains("number 2")
        );
        let later = br#"{"format":2}"#;
        let later = [
            later.as_slice(),
            format!("\n{:08x}\n", crc32fast::hash(later)).as_bytes(),
        ]
        .concat();
        assert!(
            Manifest::decode(&later, 2)
                .unwrap_err()
                .contains("format is 2")
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(inner in any::<Vec<u8>>(), digest in any::<[u8; 16]>()) {
            let content = content(&["segments/000001/graph", "mask-1"], inner, digest);
            let read = Manifest::decode(&manifest(&content).encode(), 2).unwrap();
            prop_assert_eq!(read.content().unwrap(), content);
        }

        #[test]
        fn no_single_changed_byte_goes_unseen(at in any::<proptest::sample::Index>(), to in any::<u8>()) {
            let mut stored = manifest(&content(&["a"], vec![1, 2, 3], [7; 16])).encode();
            let at = at.index(stored.len());
            prop_assume!(stored[at] != to);
            stored[at] = to;
            prop_assert!(Manifest::decode(&stored, 2).is_err());
        }
    }
}
