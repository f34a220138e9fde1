//! The edges of a graph in memory: what is left of it without vectors.
//!
//! Level 0 holds every row, with a fixed number of places for edges; a list that is shorter ends
//! at [`NONE`]. The levels above hold few rows, so each lists them. The same arrays stand in a
//! packed file.

/// Ends a list of neighbours that is shorter than its places. Any number that is no row does.
pub const NONE: u32 = u32::MAX;
/// Most levels above 0. With the usual chances a graph of 2^32 rows has eight.
pub const MAX_UPPER_LEVELS: usize = 32;

/// A place in a list of neighbours.
pub(super) trait Place {
    /// The number that stands in it.
    fn number(&self) -> u32;
}

impl Place for u32 {
    #[inline(always)]
    fn number(&self) -> u32 {
        *self
    }
}

/// Who is whose neighbour, at every level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adjacency {
    pub(super) rows: u32,
    /// Where a walk starts: a row of the highest level.
    pub(super) entry: u32,
    /// Places a row at level 0.
    pub(super) degree: usize,
    /// Places a row at the levels above.
    pub(super) upper_degree: usize,
    /// `rows * degree` numbers.
    pub(super) base: Vec<u32>,
    /// Level 1 first.
    pub(super) upper: Vec<Level>,
}

/// A level above 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// The rows on it, rising.
    pub(super) rows: Vec<u32>,
    /// `rows.len() * upper_degree` numbers.
    pub(super) links: Vec<u32>,
}

impl Adjacency {
    /// Number of rows.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Where a walk starts.
    pub fn entry(&self) -> u32 {
        self.entry
    }

    /// The highest level.
    pub fn top_level(&self) -> usize {
        self.upper.len()
    }

    /// Most neighbours a row has at level 0, and above.
    pub fn degrees(&self) -> (usize, usize) {
        (self.degree, self.upper_degree)
    }

    /// A row's neighbours on a level; none if the row is not on it.
    pub fn neighbours(&self, row: u32, level: usize) -> &[u32] {
        let places = match level.checked_sub(1) {
            None => places(&self.base, index(row), self.degree),
            Some(upper) => {
                let level = self.upper.get(upper);
                level.map_or(&[][..], |level| {
                    places_of(&level.rows, &level.links, row, self.upper_degree)
                })
            }
        };
        until_none(places, self.rows)
    }

    /// The highest level a row is on.
    pub fn level(&self, row: u32) -> usize {
        let on = |level: &&Level| level.rows.binary_search(&row).is_ok();
        self.upper.iter().take_while(on).count()
    }
}

impl Adjacency {
    /// A row's places on a level, to change them; none if it is not on it.
    pub(super) fn places_mut(&mut self, level: usize, row: u32) -> &mut [u32] {
        let Some(upper) = level.checked_sub(1) else {
            let start = index(row).saturating_mul(self.degree);
            let places = self.base.get_mut(start..start.saturating_add(self.degree));
            return places.unwrap_or_default();
        };
        let degree = self.upper_degree;
        let level = self.upper.get_mut(upper);
        let places = level.and_then(|level| {
            let start = level.rows.binary_search(&row).ok()?.saturating_mul(degree);
            level.links.get_mut(start..start.saturating_add(degree))
        });
        places.unwrap_or_default()
    }
}

impl Adjacency {
    /// The same edges between the rows of a larger segment: `keys` says, rising, which row each of
    /// these is there.
    pub fn spread(self, keys: &[u32], rows: u32) -> Self {
        if self.rows == rows {
            return self;
        }
        let key = |row: u32| keys.get(index(row)).copied().unwrap_or(NONE);
        let mut base = vec![NONE; index(rows).saturating_mul(self.degree)];
        for (at, to) in (0..self.rows).map(|row| (row, key(row))) {
            let from = places(&self.base, index(at), self.degree);
            let start = index(to).saturating_mul(self.degree);
            for (place, neighbour) in base.iter_mut().skip(start).zip(from) {
                *place = key(*neighbour);
            }
        }
        let upper = self.upper.into_iter().map(|level| Level {
            rows: level.rows.into_iter().map(key).collect(),
            links: level.links.into_iter().map(key).collect(),
        });
        Self {
            rows,
            entry: keys.get(index(self.entry)).copied().unwrap_or(0),
            base,
            degree: self.degree,
            upper_degree: self.upper_degree,
            upper: upper.collect(),
        }
    }
}

impl Level {
    /// Puts a row on the level; nothing if it is there. One that comes behind all others takes no time.
    pub(super) fn stand(&mut self, row: u32, degree: usize) {
        let is_behind = self.rows.last().is_none_or(|last| *last < row);
        let at = match is_behind {
            true => Err(self.rows.len()),
            false => self.rows.binary_search(&row),
        };
        if let Err(at) = at {
            self.rows.insert(at, row);
            let places = at.saturating_mul(degree);
            let empty = std::iter::repeat_n(NONE, degree);
            self.links.splice(places..places, empty);
        }
    }
}

/// A row as an index.
#[inline(always)]
pub(super) fn index(row: u32) -> usize {
    usize::try_from(row).unwrap_or(usize::MAX)
}

/// The places of the `at`th row in an array of them; none if it has not so many rows.
#[inline(always)]
pub(super) fn places<P>(links: &[P], at: usize, degree: usize) -> &[P] {
    let start = at.saturating_mul(degree);
    links
        .get(start..start.saturating_add(degree))
        .unwrap_or_default()
}

/// The places of a row of an upper level.
pub(super) fn places_of<'a>(rows: &[u32], links: &'a [u32], row: u32, degree: usize) -> &'a [u32] {
    match rows.binary_search(&row) {
        Ok(at) => places(links, at, degree),
        Err(_) => &[],
    }
}

/// The list in its places: up to the first number that is no row.
#[inline(always)]
pub(super) fn until_none(places: &[u32], rows: u32) -> &[u32] {
    let end = places.iter().position(|row| *row >= rows);
    places
        .get(..end.unwrap_or(places.len()))
        .unwrap_or_default()
}
