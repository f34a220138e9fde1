//! Where records may live: each record of a call is written in the region of its residency, by this gateway
//! or by one of that region, or nowhere.
//!
//! A record's residency is a tag: the one configured for its tenant, else the one for its collection,
//! else the one that the call says. Each tag belongs to one region. A call that says another region than
//! is configured is refused, so that nobody takes data out of its region by a header. Where nothing says
//! anything, a record is written here, without a tag. What is sent on is sent on once: a gateway that
//! another one chose writes the record or refuses it. No body of a call is logged, and no error shows one.

mod config;
mod parts;
mod regions;
mod rule;

pub use config::{RegionConfig, ResidencyConfig};
pub use regions::RegionError;
pub use rule::ResidencyError;

pub(super) use parts::{Part, Sorted, parts, placed};
pub(super) use regions::{Regions, Write};
pub(super) use rule::{Place, Residency, Rule, Said};

/// What a gateway says of itself in a call that it sends on: its region.
const FORWARDED_FROM: &str = "shoal-forwarded-from";

#[cfg(test)]
mod serving_tests;
