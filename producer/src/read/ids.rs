//! Ids to delete: one a line, as they are, in a text file or on standard input.
//!
//! Surrounding white space does not belong to an id here; one that has some is deleted by name
//! on the command line.

use shoal_schemas::{PointId, Reason, Rejection};

use super::{
    Input, Place, ReadError,
    bytes::{self, Found, Lines},
};

/// Far over the longest id, so that a file of something else is told by its first line.
const LINE_BYTES: usize = 64 << 10;

/// Opens a list of ids, also one packed with gzip.
///
/// # Errors
/// [`ReadError::Io`].
pub fn open(
    input: &Input,
) -> Result<impl Iterator<Item = Result<PointId, ReadError>> + Send + 'static, ReadError> {
    Ok(Ids {
        input: input.clone(),
        lines: Lines::new(bytes::open(input)?, LINE_BYTES),
        ended: false,
    })
}

struct Ids {
    input: Input,
    lines: Lines,
    ended: bool,
}

impl Iterator for Ids {
    type Item = Result<PointId, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = match self.lines.advance() {
            Ok(Found::Line) => PointId::from_key(Some(self.lines.line())).map_err(Rejection::from),
            Ok(Found::TooLong) => Err(Rejection::new(
                Reason::BadKey,
                format_args!("line is over {LINE_BYTES} bytes, which is no id"),
            )),
            Ok(Found::End) => {
                self.ended = true;
                return None;
            }
            Err(source) => {
                self.ended = true;
                return Some(Err(ReadError::io(&self.input, source)));
            }
        };
        let place = Place::Line(self.lines.number());
        Some(read.map_err(|rejection| ReadError::record(&self.input, place, rejection)))
    }
}
