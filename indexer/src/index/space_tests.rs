#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
//! Tests of [`super::Space`].
