//! Configuration in layers: defaults, a TOML file, the environment.
//!
//! `SHOAL_INDEXER__DATA_DIR=/x` sets `indexer.data_dir`: a double underscore nests. Unknown keys
//! are faults, and all faults are told at once, before any port is bound.

use std::path::{Path, PathBuf};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Env, Format, Serialized, Toml},
    value::{Dict, Map, Value},
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
    Layers::new(file, sections).load()
}

/// What a person has set: a file and the environment, without the defaults.
pub struct Layers {
    file: Option<PathBuf>,
    sections: Vec<String>,
}

/// Faults past this number are not looked for.
const MAX_FAULTS: usize = 100;

impl Layers {
    /// Of that file and the variables of these top-level keys.
    pub fn new(file: Option<&Path>, sections: &[&str]) -> Self {
        let sections = sections.iter().map(|section| section.to_ascii_lowercase());
        Self {
            file: file.map(Path::to_owned),
            sections: sections.collect(),
        }
    }

    /// Whether the file or the environment sets a key, dots between its levels.
    pub fn sets(&self, key: &str) -> bool {
        self.without(&[], Figment::new()).find_value(key).is_ok()
    }

    /// Settings over `T`'s defaults.
    ///
    /// A value that does not read is named and left out, and the rest is read on, so that every
    /// fault is found.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn load<T>(&self) -> Result<T, ConfigError>
    where
        T: Default + Serialize + DeserializeOwned + Validate,
    {
        if let Some(path) = &self.file
            && !path.exists()
        {
            return Err(ConfigError::NoFile { path: path.clone() });
        }
        let mut faults = Vec::new();
        let mut faulty: Vec<Vec<String>> = Vec::new();
        let settings: Option<T> = loop {
            let defaults = Figment::from(Serialized::defaults(T::default()));
            let errors = match self.without(&faulty, defaults).extract() {
                Ok(settings) => break Some(settings),
                Err(errors) => errors,
            };
            let before = faulty.len();
            for error in errors {
                let path = place(&error);
                faults.push(error.to_string());
                if !path.is_empty() && !faulty.contains(&path) {
                    faulty.push(path);
                }
            }
            // A file that does not parse has no place to leave out.
            if faulty.len() == before || faults.len() >= MAX_FAULTS {
                break None;
            }
        };
        if let Some(settings) = &settings {
            settings.validate(&mut faults);
        }
        match settings {
            Some(settings) if faults.is_empty() => Ok(settings),
            _ => Err(ConfigError::Faults { faults }),
        }
    }

    /// The layers over `base`, some keys left out.
    fn without(&self, faulty: &[Vec<String>], base: Figment) -> Figment {
        let mut layers = base;
        if let Some(path) = &self.file {
            layers = layers.merge(Without {
                inner: Toml::file(path),
                keys: faulty.to_vec(),
            });
        }
        let wanted = self.sections.clone();
        let environment = Env::prefixed(ENV_PREFIX)
            .filter(move |key| {
                let key = key.as_str().to_ascii_lowercase();
                let top = key.split(ENV_SEPARATOR).next().unwrap_or_default();
                wanted.iter().any(|section| section == top) && key.contains(ENV_SEPARATOR)
            })
            .split(ENV_SEPARATOR);
        layers.merge(Without {
            inner: environment,
            keys: faulty.to_vec(),
        })
    }
}

/// The key an error is about, level by level.
fn place(error: &figment::Error) -> Vec<String> {
    let mut path = error.path.clone();
    if let figment::error::Kind::UnknownField(field, _) = &error.kind
        && path.last() != Some(field)
    {
        path.push(field.clone());
    }
    path
}

/// A layer without some of its keys.
struct Without<P> {
    inner: P,
    keys: Vec<Vec<String>>,
}

impl<P: Provider> Provider for Without<P> {
    fn metadata(&self) -> Metadata {
        self.inner.metadata()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut data = self.inner.data()?;
        for profile in data.values_mut() {
            for key in &self.keys {
                leave_out(profile, key);
            }
        }
        Ok(data)
    }
}

fn leave_out(from: &mut Dict, key: &[String]) {
    match key {
        [] => {}
        [last] => {
            from.remove(last);
        }
        [first, rest @ ..] => {
            if let Some(Value::Dict(_, inner)) = from.get_mut(first) {
                leave_out(inner, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde::{Deserialize, Serialize};

    use super::{ConfigError, Layers, Validate, load};

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

    #[test]
    fn values_that_do_not_read_do_not_hide_other_faults() {
        let mut file = std::env::temp_dir();
        file.push(format!("shoal-config-faults-{}.toml", std::process::id()));
        let text = "[wal]\nsegmnt = 3\nsegment = \"many\"\nlimit = 0\n[wall]\nx = 1\n";
        std::fs::write(&file, text).unwrap();
        let layers = Layers::new(Some(&file), &["wal"]);
        let refused = layers.load::<Settings>().unwrap_err();
        let is_set = (layers.sets("wal.limit"), layers.sets("wal.other"));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(is_set, (true, false));
        let ConfigError::Faults { faults } = refused else {
            panic!("{refused}");
        };
        for named in ["segmnt", "wal.segment", "wal.limit is 0", "wall"] {
            assert!(
                faults.iter().any(|fault| fault.contains(named)),
                "{named}: {faults:?}"
            );
        }
    }
}
