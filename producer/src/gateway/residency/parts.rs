//! A call's records by where each is written, and the calls to other regions that come of it.

use std::collections::BTreeMap;

use futures::future::join_all;
use shoal_schemas::{CollectionName, PointId, RegionName, Token};

use super::{Place, RegionError, Rule, Write};
use crate::{
    Publisher,
    gateway::{
        CallError,
        calls::{Calls, To},
        resolve::Deadline,
    },
};

/// Records of a call by where they are written, each with its place in the call.
#[derive(Debug)]
pub(in crate::gateway) struct Sorted<H, T> {
    pub(in crate::gateway) here: Vec<(usize, H)>,
    pub(in crate::gateway) there: BTreeMap<RegionName, Vec<(usize, T)>>,
}

impl<H, T> Default for Sorted<H, T> {
    fn default() -> Self {
        Self {
            here: Vec::new(),
            there: BTreeMap::new(),
        }
    }
}

impl<H, T> Sorted<H, T> {
    pub(in crate::gateway) fn add_there(&mut self, region: &RegionName, at: usize, what: T) {
        match self.there.get_mut(region) {
            Some(all) => all.push((at, what)),
            None => {
                self.there.insert(region.clone(), vec![(at, what)]);
            }
        }
    }

    /// Adds what was sorted by itself, all of it at this place.
    pub(in crate::gateway) fn append(&mut self, at: usize, one: Self) {
        self.here
            .extend(one.here.into_iter().map(|(_, what)| (at, what)));
        for (region, all) in one.there {
            for (_, what) in all {
                self.add_there(&region, at, what);
            }
        }
    }
}

/// The part of a call that another region writes.
pub(in crate::gateway) struct Part {
    pub(in crate::gateway) region: RegionName,
    /// The places of its points in the call.
    pub(in crate::gateway) at: Vec<usize>,
    pub(in crate::gateway) write: Write,
}

/// Where the point at a place of a call is written.
pub(in crate::gateway) fn placed<'a>(
    rule: &'a Rule,
    index: usize,
    id: &PointId,
) -> Result<Place<'a>, CallError> {
    rule.place(id).map_err(|error| CallError::Residency {
        index,
        source: Box::new(error),
    })
}

/// A call to each region that has a part of one.
pub(in crate::gateway) fn parts<T>(
    there: BTreeMap<RegionName, Vec<(usize, T)>>,
    write: impl Fn(Vec<T>) -> Write,
) -> Vec<Part> {
    let parts = there.into_iter().map(|(region, points)| {
        let (at, points) = points.into_iter().unzip();
        Part {
            region,
            at,
            write: write(points),
        }
    });
    parts.collect()
}

impl Calls {
    /// The rule that the records of a call are placed by.
    pub(in crate::gateway) fn rule(
        &self,
        to: &To<'_>,
        publisher: &Publisher,
    ) -> Result<Rule, CallError> {
        let called: CollectionName = to.collection.parse()?;
        let collection = publisher.collection();
        Ok(self.residency.rule(&called, collection, &to.said)?)
    }

    /// Has other regions write their parts of a call, side by side; the token of each point, with its place.
    pub(in crate::gateway) async fn elsewhere(
        &self,
        parts: Vec<Part>,
        deadline: Deadline,
    ) -> Result<Vec<(usize, Token)>, CallError> {
        let asked = parts.into_iter().map(async |part| {
            let Part { region, at, write } = part;
            let written = self.regions.write(&region, write, deadline).await?;
            Ok::<_, RegionError>(at.into_iter().zip(written.tokens).collect::<Vec<_>>())
        });
        let mut tokens = Vec::new();
        // All of them are waited for: what one refuses takes nothing back from the others.
        for written in join_all(asked).await {
            tokens.extend(written?);
        }
        Ok(tokens)
    }
}
