//! URLs of object stores, read before anything is opened.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use shoal_runtime::ErrorKind;

/// Why a URL names no store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The scheme.
    #[error(
        "`{url}` names no object store; wanted is a folder, file:///folder, s3://bucket/prefix, \
         gs://bucket/prefix or az://container/prefix"
    )]
    Scheme {
        /// As given.
        url: String,
    },
    /// What comes after the scheme.
    #[error("`{url}` cannot be used as a prefix; leave out empty parts, `.` and `..`")]
    Prefix {
        /// As given.
        url: String,
        /// What exactly.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A local folder.
    #[error("cannot use folder `{}` as object store; make it, or choose another", .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// The system's own.
        #[source]
        source: io::Error,
    },
    /// The cloud's settings.
    #[error("cannot use `{url}`; check the store's variables in the environment")]
    Settings {
        /// As given.
        url: String,
        /// What exactly.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl OpenError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Caller
    }
}

/// What a URL says, before anything is opened.
pub(super) enum Named<'a> {
    Folder(&'a Path),
    Cloud {
        scheme: Scheme,
        bucket: &'a str,
        prefix: &'a str,
    },
}

#[derive(Clone, Copy)]
pub(super) enum Scheme {
    S3,
    Google,
    Azure,
}

/// Reads a URL. A bucket has no default, and user, port and query have no meaning.
pub(super) fn parse(url: &str) -> Option<Named<'_>> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return (!url.is_empty()).then(|| Named::Folder(Path::new(url)));
    };
    let scheme = match scheme {
        "file" => {
            return rest
                .starts_with('/')
                .then(|| Named::Folder(Path::new(rest)));
        }
        "s3" => Scheme::S3,
        "gs" => Scheme::Google,
        "az" => Scheme::Azure,
        _ => return None,
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let named = !bucket.is_empty() && bucket.chars().all(is_name);
    named.then_some(Named::Cloud {
        scheme,
        bucket,
        prefix: prefix.trim_end_matches('/'),
    })
}

/// What is wrong with a store's URL; `None` if it can be opened. Asks nobody.
pub fn fault_of_url(url: &str) -> Option<String> {
    parse(url)
        .is_none()
        .then(|| OpenError::Scheme { url: url.into() }.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::fault_of_url;

    #[test]
    fn urls_that_name_no_store_are_told_before_anything_is_opened() {
        for good in [
            "/var/snapshots",
            "file:///x",
            "s3://b",
            "s3://b/a/c/",
            "gs://b/p",
            "az://c",
        ] {
            assert_eq!(fault_of_url(good), None, "{good}");
        }
        for bad in [
            "",
            "file://x",
            "s3://",
            "s3:///p",
            "ftp://h/x",
            "s3://b?x=1",
            "s3://a@b/c",
        ] {
            let fault = fault_of_url(bad).unwrap();
            assert!(fault.contains(&format!("`{bad}`")), "{fault}");
        }
    }
}
