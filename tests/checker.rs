//! The checker of histories against planted faults: each kind of wrong answer is caught and named, a right one is not.
//!
//! `tests/e2e/history/` records real histories and checks them with the same code.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test")]

#[path = "checker/mod.rs"]
mod checker;
#[path = "checker/patched.rs"]
mod patched;
#[path = "checker/planted.rs"]
mod planted;
#[path = "checker/story.rs"]
mod story;
