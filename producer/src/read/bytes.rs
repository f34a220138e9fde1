//! The bytes of an input, unpacked, and its lines, none longer than a limit.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use flate2::bufread::MultiGzDecoder;

use super::{Input, ReadError};

const BUFFER_BYTES: usize = 256 << 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Opens an input; gzip (one member or several) is known by its first bytes and unpacked.
pub(super) fn open(input: &Input) -> Result<Box<dyn BufRead + Send>, ReadError> {
    let opened: Box<dyn BufRead + Send> = match input {
        Input::Stdin => Box::new(BufReader::with_capacity(BUFFER_BYTES, io::stdin())),
        Input::File(path) => {
            let file = File::open(path).map_err(|source| ReadError::io(input, source))?;
            Box::new(BufReader::with_capacity(BUFFER_BYTES, file))
        }
    };
    unpack(opened).map_err(|source| ReadError::io(input, source))
}

fn unpack(mut packed: Box<dyn BufRead + Send>) -> io::Result<Box<dyn BufRead + Send>> {
    // A pipe may give a single byte first; JSON never starts with gzip's first byte, so one is
    // enough to tell, and the second is checked by the decoder.
    let is_gzip = packed.fill_buf()?.first() == GZIP_MAGIC.first();
    if is_gzip {
        let unpacked = MultiGzDecoder::new(packed);
        Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, unpacked)))
    } else {
        Ok(packed)
    }
}

/// What [`Lines::advance`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A line, in [`Lines::line`], without its end.
    Line,
    /// A line over the limit; its rest is passed over.
    TooLong,
    /// No more.
    End,
}

/// Lines of a text, blank ones passed over, each at most `limit_bytes` long.
pub(super) struct Lines {
    from: Box<dyn BufRead + Send>,
    buffer: Vec<u8>,
    limit_bytes: usize,
    number: u64,
}

impl Lines {
    pub(super) fn new(from: Box<dyn BufRead + Send>, limit_bytes: usize) -> Self {
        Self {
            from,
            buffer: Vec::new(),
            limit_bytes,
            number: 0,
        }
    }

    /// Number of the line last found, counted from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The line last found.
    pub(super) fn line(&self) -> &[u8] {
        let line = self.buffer.trim_ascii();
        let first = self.number == 1;
        line.strip_prefix(BYTE_ORDER_MARK)
            .filter(|_| first)
            .unwrap_or(line)
    }

    /// Goes to the next line that is not blank.
    pub(super) fn advance(&mut self) -> io::Result<Found> {
        loop {
            match self.read_line()? {
                Found::Line if self.line().is_empty() => {}
                found => return Ok(found),
            }
        }
    }

    fn read_line(&mut self) -> io::Result<Found> {
        self.buffer.clear();
        let mut too_long = false;
        let mut any = false;
        loop {
            let bytes = match self.from.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if bytes.is_empty() {
                break;
            }
            any = true;
            let (part, used, ended) = match bytes.iter().position(|byte| *byte == b'\n') {
                Some(end) => (bytes.get(..end).unwrap_or_default(), end + 1, true),
                None => (bytes, bytes.len(), false),
            };
            too_long |= self.buffer.len() + part.len() > self.limit_bytes;
            if !too_long {
                self.buffer.extend_from_slice(part);
            }
            self.from.consume(used);
            if ended {
                break;
            }
        }
        if !any {
            return Ok(Found::End);
        }
        self.number += 1;
        Ok(if too_long {
            Found::TooLong
        } else {
            Found::Line
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::{BufReader, Cursor};

    use proptest::prelude::*;

    use super::{Found, Lines};

    fn lines(text: &[u8], step: usize, limit_bytes: usize) -> Vec<(u64, Option<Vec<u8>>)> {
        let from = BufReader::with_capacity(step, Cursor::new(text.to_vec()));
        let mut lines = Lines::new(Box::new(from), limit_bytes);
        let mut found = Vec::new();
        loop {
            match lines.advance().unwrap() {
                Found::Line => found.push((lines.number(), Some(lines.line().to_vec()))),
                Found::TooLong => found.push((lines.number(), None)),
                Found::End => return found,
            }
        }
    }

    #[test]
    fn blank_lines_are_counted_and_passed_over() {
        let text = b"\xef\xbb\xbfa\r\n\n  \nb\nlong line\nc";
        let found = lines(text, 3, 6);
        let line = |text: &str| Some(text.as_bytes().to_vec());
        assert_eq!(
            found,
            [(1, line("a")), (4, line("b")), (5, None), (6, line("c"))]
        );
    }

    proptest! {
        #[test]
        fn lines_are_those_of_the_text_however_it_arrives(
            text in "[ab\n]{0,60}",
            step in 1usize..20,
        ) {
            let expected: Vec<(u64, Option<Vec<u8>>)> = text
                .split('\n')
                .zip(1..)
                .filter(|(line, _)| !line.is_empty())
                .map(|(line, number)| (number, Some(line.as_bytes().to_vec())))
                .collect();
            prop_assert_eq!(lines(text.as_bytes(), step, 100), expected);
        }
    }
}
