//! Where the servers' packages are, which `make setup` fetches.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Names the folder with Kafka's `libs`.
pub const KAFKA_HOME_VARIABLE: &str = "SHOAL_KAFKA_HOME";
/// Names the folder with the registry's runnable jar.
pub const REGISTRY_HOME_VARIABLE: &str = "SHOAL_REGISTRY_HOME";

const KAFKA: &str = "kafka-4.3.1";
const REGISTRY: &str = "apicurio-3.0.9";

/// Kafka's folder: the variable's, or the one that the setup makes.
pub fn kafka_home() -> PathBuf {
    home(KAFKA_HOME_VARIABLE, KAFKA)
}

/// The registry's folder: the variable's, or the one that the setup makes.
pub fn registry_home() -> PathBuf {
    home(REGISTRY_HOME_VARIABLE, REGISTRY)
}

fn home(variable: &str, name: &str) -> PathBuf {
    if let Some(set) = env::var_os(variable) {
        return set.into();
    }
    let cache = env::var_os("SHOAL_CACHE").map(PathBuf::from);
    let own = || Path::new(&env::var_os("HOME").unwrap_or_default()).join(".cache/shoal");
    cache.unwrap_or_else(own).join(name)
}
