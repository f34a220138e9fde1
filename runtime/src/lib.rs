//! Plumbing every Shoal role shares: configuration, telemetry, tasks, shutdown, the clock.
//!
//! The rules that keep the rest deterministic live here: the wall clock is read only in
//! [`clock`], tasks and threads start only through [`tasks`], and those that give way to others
//! for a time through [`priority`]. It knows nothing of vectors or topics.
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod crash;
pub mod error;
pub mod grpc;
pub mod http;
pub mod openapi;
pub mod priority;
pub mod serving;
pub mod tasks;
pub mod telemetry;
pub mod timeout;
pub mod wait;

pub use error::{ErrorKind, chain};
pub use wait::eventually;
