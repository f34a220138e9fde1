//! Avro's binary primitives, read from untrusted bytes.
//!
//! Nothing is allocated by a length that the bytes merely claim, and no read goes past the end:
//! what is missing is an error that says where.

/// Why bytes are no datum of their schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("value ends after {len} bytes, at byte {at} {missing} more are needed")]
    Short { len: usize, at: usize, missing: u64 },
    #[error("value has {extra} bytes too many after its end at byte {at}")]
    Trailing { at: usize, extra: usize },
    #[error("number at byte {at} is over {bits} bits")]
    Overlong { at: usize, bits: u32 },
    #[error("length at byte {at} is {found}")]
    Length { at: usize, found: i64 },
    #[error("union at byte {at} takes branch {found} of {branches}")]
    Branch {
        at: usize,
        found: i64,
        branches: usize,
    },
    #[error("boolean at byte {at} is {found}")]
    Boolean { at: usize, found: u8 },
    #[error("text at byte {at} is no UTF-8")]
    Text { at: usize },
    #[error("field `{field}` is {found}, expected {expected}")]
    Type {
        field: &'static str,
        found: String,
        expected: &'static str,
    },
    #[error("payload field `{field}` is {found}")]
    PayloadType { field: String, found: String },
    #[error(
        "packed vector of {encoding} has {bytes} bytes, which is no whole number of components"
    )]
    Packed {
        encoding: &'static str,
        bytes: usize,
    },
    #[error("packed vector is encoded as `{found}`, known are F32, F16, BF16 and I8")]
    Encoding { found: String },
}

/// Reads from the front of a value.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    /// Bytes before the cursor's start, and from the value's start to its end.
    len: usize,
}

impl<'a> Cursor<'a> {
    /// Starts after a frame of `value.len() - datum.len()` bytes, so that places count from the
    /// value's first byte.
    pub(super) fn new(datum: &'a [u8], value: &[u8]) -> Self {
        Self {
            rest: datum,
            len: value.len(),
        }
    }

    /// The next byte's place.
    pub(super) fn at(&self) -> usize {
        self.len - self.rest.len()
    }

    /// Bytes not yet read.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.short(u64::try_from(count).unwrap_or(u64::MAX)));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn short(&self, needed: u64) -> Malformed {
        let left = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        Malformed::Short {
            len: self.len,
            at: self.at(),
            missing: needed.saturating_sub(left),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("`take` gives as many as asked for"))
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Malformed> {
        let at = self.at();
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(Malformed::Boolean { at, found }),
        }
    }

    pub(super) fn float(&mut self) -> Result<f32, Malformed> {
        self.array().map(f32::from_le_bytes)
    }

    pub(super) fn double(&mut self) -> Result<f64, Malformed> {
        self.array().map(f64::from_le_bytes)
    }

    /// A zigzag number of at most 64 bits.
    pub(super) fn long(&mut self) -> Result<i64, Malformed> {
        let at = self.at();
        let mut raw = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            raw |= bits << shift;
            if byte < 0x80 {
                return Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed());
            }
        }
        Err(Malformed::Overlong { at, bits: 64 })
    }

    /// A zigzag number of at most 32 bits.
    pub(super) fn int(&mut self) -> Result<i32, Malformed> {
        let at = self.at();
        i32::try_from(self.long()?).map_err(|_| Malformed::Overlong { at, bits: 32 })
    }

    /// Length-prefixed bytes.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let at = self.at();
        let found = self.long()?;
        let wide = u64::try_from(found).map_err(|_| Malformed::Length { at, found })?;
        let count = usize::try_from(wide).map_err(|_| self.short(wide))?;
        self.take(count)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        let at = self.at();
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::Text { at })
    }

    /// Which of a union's branches follows.
    pub(super) fn branch(&mut self, branches: usize) -> Result<usize, Malformed> {
        let at = self.at();
        let found = self.long()?;
        match usize::try_from(found) {
            Ok(branch) if branch < branches => Ok(branch),
            _ => Err(Malformed::Branch {
                at,
                found,
                branches,
            }),
        }
    }

    /// Items in the next block of an array or map, 0 at its end. Every item takes at least
    /// `item_bytes`, so that a count the rest cannot hold is refused at once.
    pub(super) fn block(&mut self, item_bytes: usize) -> Result<usize, Malformed> {
        let at = self.at();
        let mut count = self.long()?;
        let mut limit = self.left();
        if count < 0 {
            count = count
                .checked_neg()
                .ok_or(Malformed::Overlong { at, bits: 64 })?;
            let size_at = self.at();
            let size = self.long()?;
            limit = self.left();
            match usize::try_from(size) {
                Ok(size) if size <= limit => limit = size,
                Ok(_) => return Err(self.short(size.unsigned_abs())),
                Err(_) => {
                    return Err(Malformed::Length {
                        at: size_at,
                        found: size,
                    });
                }
            }
        }
        let needed = count
            .unsigned_abs()
            .saturating_mul(item_bytes.try_into().unwrap_or(u64::MAX));
        match (usize::try_from(needed), usize::try_from(count)) {
            (Ok(needed), Ok(count)) if needed <= limit => Ok(count),
            _ => Err(self.short(needed)),
        }
    }

    /// Refuses bytes that follow the datum.
    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(Malformed::Trailing {
                at: self.at(),
                extra,
            }),
        }
    }
}
