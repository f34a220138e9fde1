//! The `shoal` program: the roles, the verbs, and `shoal up`, which is all of it in one process.
//!
//! [`config`] is every setting of every role, [`roles`] builds what they share and starts them,
//! [`up`] runs all of them with a Kafka of its own, [`running`] tells the other verbs where it
//! is. [`cli`] has a file for each group of verbs, [`demo`] is the guided tour. What the parts do
//! is in their own crates.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod demo;
pub mod roles;
pub mod running;
pub mod up;
