//! Configuration in layers: defaults, a TOML file, the environment.
//!
//! `SHOAL_INDEXER__DATA_DIR=/x` sets `indexer.data_dir`: a double underscore nests. Unknown keys
//! are faults, and all faults are told at once, before any port is bound.

use std::path::{Path, PathBuf};

use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Serialize, de::DeserializeOwned};

/// Prefix of every environment variable that sets a key.
pub const ENV_PREFIX: &str = "SHOAL_";
/// What parts one level of a key from the next in a variable's name.
pub const ENV_SEPARATOR: &str = "__";

/// Settings that can say what is wrong with themselves.
pub trait Validate {
    /// Adds every fault found, each naming the key, what it is and what it may be.
    fn validate(&self, faults: &mut Vec<String>);
}

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named is not there.
    #[error("config file `{}` does not exist", .path.display())]
    NoFile {
        /// As named.
        path: PathBuf,
    },
    /// Something does not parse, is unknown, or is out of range.
    #[error("configuration has {} fault(s): {}", .faults.len(), .faults.join("; "))]
    Faults {
        /// All of them.
        faults: Vec<String>,
    },
}

/// Loads settings: `T::default()`, then `file`, then the environment.
///
/// `sections` are the top-level keys whose variables are read; others with our prefix belong to
/// scripts and are left alone.
///
/// # Errors
/// [`ConfigError`] with every fault.
pub fn load<T>(file: Option<&Path>, sections: &[&str]) -> Result<T, ConfigError>
where
    T: Default + Serialize + DeserializeOwned + Validate,
{
    let mut layers = Figment::from(Serialized::defaults(T::default()));
    if let Some(path) = file {
        if !path.exists() {
            return Err(ConfigError::NoFile {
                path: path.to_owned(),
            });
        }
        layers = layers.merge(Toml::file(path));
    }
    let wanted: Vec<String> = sections
        .iter()
        .map(|section| section.to_ascii_lowercase())
        .collect();
    let environment = Env::prefixed(ENV_PREFIX)
        .filter(move |key| {
            let key = key.as_str().to_ascii_lowercase();
            let top = key.split(ENV_SEPARATOR).next().unwrap_or_default();
            wanted.iter().any(|section| section == top) && key.contains(ENV_SEPARATOR)
        })
        .split(ENV_SEPARATOR);
    let settings: T = layers.merge(environment).extract().map_err(|errors| {
        let faults = errors.into_iter().map(|error| error.to_string()).collect();
        ConfigError::Faults { faults }
    })?;
    let mut faults = Vec::new();
    settings.validate(&mut faults);
    if faults.is_empty() {
        Ok(settings)
    } else {
        Err(ConfigError::Faults { faults })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde::{Deserialize, Serialize};

    use super::{ConfigError, Validate, load};

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        wal: Wal,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Wal {
        segment: u32,
        limit: u32,
    }

    impl Validate for Settings {
        fn validate(&self, faults: &mut Vec<String>) {
            if self.wal.segment == 0 {
                faults.push("wal.segment is 0, allowed are 1 and more".into());
            }
            if self.wal.limit == 0 {
                faults.push("wal.limit is 0, allowed are 1 and more".into());
            }
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let refused = load::<Settings>(None, &["wal"]).unwrap_err();
        let ConfigError::Faults { faults } = refused else {
            panic!("{refused}");
        };
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn a_file_sets_keys_and_an_unknown_key_is_named() {
        let mut file = std::env::temp_dir();
        file.push(format!("shoal-config-{}.toml", std::process::id()));
        std::fs::write(&file, "[wal]\nsegment = 3\nlimit = 4\n").unwrap();
        let settings: Settings = load(Some(&file), &["wal"]).unwrap();
        assert_eq!((settings.wal.segment, settings.wal.limit), (3, 4));
        std::fs::write(&file, "[wal]\nsegmnt = 3\n").unwrap();
        let refused = load::<Settings>(Some(&file), &["wal"]).unwrap_err();
        std::fs::remove_file(&file).unwrap();
        assert!(refused.to_string().contains("segmnt"), "{refused}");
    }
}
