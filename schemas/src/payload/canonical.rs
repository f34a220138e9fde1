//! The canonical bytes of a payload.
//!
//! Little endian throughout: a `u32` count of fields, then the fields in the order of their
//! names' bytes. A field is its name, a tag byte, and the value; a text is a `u32` length and
//! UTF-8; numbers take 8 bytes, floats by their bits with -0.0 written as 0.0; a boolean is one
//! byte; a list is a `u32` count and its texts. Decoding takes canonical bytes only, so bytes
//! and payloads correspond one to one. The format never changes: logs and digests rest on it.

use std::collections::BTreeMap;

use super::{MAX_FIELDS, Payload, PayloadError, Value, check_finite, check_name};

const STRING: u8 = 1;
const INTEGER: u8 = 2;
const FLOAT: u8 = 3;
const BOOLEAN: u8 = 4;
const TIMESTAMP: u8 = 5;
const STRINGS: u8 = 6;

impl Payload {
    /// Appends the canonical bytes.
    pub fn encode_canonical(&self, out: &mut Vec<u8>) {
        put_len(out, self.0.len());
        for (name, value) in &self.0 {
            put_text(out, name);
            match value {
                Value::String(text) => {
                    out.push(STRING);
                    put_text(out, text);
                }
                Value::Integer(number) => {
                    out.push(INTEGER);
                    out.extend(number.to_le_bytes());
                }
                Value::Float(number) => {
                    out.push(FLOAT);
                    // Adding 0.0 turns -0.0 into 0.0 and changes nothing else.
                    out.extend((number + 0.0).to_bits().to_le_bytes());
                }
                Value::Boolean(truth) => out.extend([BOOLEAN, u8::from(*truth)]),
                Value::Timestamp(millis) => {
                    out.push(TIMESTAMP);
                    out.extend(millis.to_le_bytes());
                }
                Value::Strings(texts) => {
                    out.push(STRINGS);
                    put_len(out, texts.len());
                    texts.iter().for_each(|text| put_text(out, text));
                }
            }
        }
    }

    /// Reads canonical bytes, all of them, and checks the payload.
    ///
    /// # Errors
    /// [`PayloadError::Short`] and [`PayloadError::NotCanonical`] for the bytes, any other case
    /// for what they say.
    pub fn decode_canonical(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut input = Input {
            rest: bytes,
            len: bytes.len(),
        };
        let count = input.len()?;
        if count > MAX_FIELDS {
            return Err(PayloadError::TooManyFields { found: count });
        }
        let mut fields = BTreeMap::new();
        for _ in 0..count {
            let at = input.at();
            let name = input.text()?;
            check_name(&name)?;
            let sorted = fields.last_key_value().is_none_or(|(last, _)| *last < name);
            if !sorted {
                return Err(not_canonical(at, "a name that is not above the one before"));
            }
            let value = input.value(&name)?;
            fields.insert(name, value);
        }
        if !input.rest.is_empty() {
            return Err(not_canonical(input.at(), "more bytes than the fields take"));
        }
        Ok(Self(fields))
    }
}

fn not_canonical(at: usize, what: &'static str) -> PayloadError {
    PayloadError::NotCanonical { at, what }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("a record is far below 4 GiB");
    out.extend(len.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_len(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

struct Input<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Input<'a> {
    fn at(&self) -> usize {
        self.len - self.rest.len()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], PayloadError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(PayloadError::Short {
                len: self.len,
                missing: count - self.rest.len(),
            });
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PayloadError> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("`take` gives as many as asked for"))
    }

    fn len(&mut self) -> Result<usize, PayloadError> {
        let len = u32::from_le_bytes(self.array()?);
        Ok(usize::try_from(len).expect("an address has at least 32 bits"))
    }

    fn text(&mut self) -> Result<String, PayloadError> {
        let count = self.len()?;
        let at = self.at();
        let bytes = self.take(count)?;
        let text = std::str::from_utf8(bytes).map_err(|_| not_canonical(at, "no UTF-8"))?;
        Ok(text.to_owned())
    }

    fn value(&mut self, field: &str) -> Result<Value, PayloadError> {
        let at = self.at();
        let [tag] = self.array()?;
        Ok(match tag {
            STRING => Value::String(self.text()?),
            INTEGER => Value::Integer(i64::from_le_bytes(self.array()?)),
            FLOAT => {
                let number = f64::from_bits(u64::from_le_bytes(self.array()?));
                check_finite(field, number)?;
                if number.to_bits() == (-0.0_f64).to_bits() {
                    return Err(not_canonical(at, "a negative zero"));
                }
                Value::Float(number)
            }
            BOOLEAN => match self.array()? {
                [0] => Value::Boolean(false),
                [1] => Value::Boolean(true),
                _ => return Err(not_canonical(at, "a boolean that is neither 0 nor 1")),
            },
            TIMESTAMP => Value::Timestamp(i64::from_le_bytes(self.array()?)),
            STRINGS => {
                // Every text takes 4 bytes or more, so a false count ends at the input's end.
                let count = self.len()?;
                let mut texts = Vec::new();
                for _ in 0..count {
                    texts.push(self.text()?);
                }
                Value::Strings(texts)
            }
            _ => return Err(not_canonical(at, "an unknown tag")),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::super::{Payload, PayloadError, Value, arbitrary};

    fn canonical(payload: &Payload) -> Vec<u8> {
        let mut bytes = Vec::new();
        payload.encode_canonical(&mut bytes);
        bytes
    }

    #[test]
    fn bytes_once_written_keep_their_meaning() {
        let payload = Payload(
            [
                ("b".to_owned(), Value::Boolean(true)),
                ("a".to_owned(), Value::String("é".to_owned())),
                ("c".to_owned(), Value::Float(-0.0)),
                ("d".to_owned(), Value::Strings(vec!["x".to_owned()])),
                ("e".to_owned(), Value::Timestamp(-2)),
                ("f".to_owned(), Value::Integer(258)),
            ]
            .into(),
        );
        let mut expected = vec![6, 0, 0, 0];
        expected.extend([1, 0, 0, 0, b'a', 1, 2, 0, 0, 0, 0xc3, 0xa9]);
        expected.extend([1, 0, 0, 0, b'b', 4, 1]);
        expected.extend([1, 0, 0, 0, b'c', 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([1, 0, 0, 0, b'd', 6, 1, 0, 0, 0, 1, 0, 0, 0, b'x']);
        expected.extend([1, 0, 0, 0, b'e', 5, 0xfe, 255, 255, 255, 255, 255, 255, 255]);
        expected.extend([1, 0, 0, 0, b'f', 2, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(canonical(&payload), expected);
        assert_eq!(Payload::decode_canonical(&expected).unwrap(), payload);
    }

    #[test]
    fn bytes_that_are_not_canonical_are_refused() {
        let cases: [&[u8]; 6] = [
            &[2, 0, 0, 0, 1, 0, 0, 0, b'b', 4, 1, 1, 0, 0, 0, b'a', 4, 1],
            &[2, 0, 0, 0, 1, 0, 0, 0, b'a', 4, 1, 1, 0, 0, 0, b'a', 4, 1],
            &[1, 0, 0, 0, 1, 0, 0, 0, b'a', 4, 2],
            &[1, 0, 0, 0, 1, 0, 0, 0, b'a', 9],
            &[1, 0, 0, 0, 1, 0, 0, 0, b'a', 3, 0, 0, 0, 0, 0, 0, 0, 0x80],
            &[0, 0, 0, 0, 0],
        ];
        for bytes in cases {
            let refused = Payload::decode_canonical(bytes).unwrap_err();
            assert!(
                matches!(refused, PayloadError::NotCanonical { .. }),
                "{refused}"
            );
        }
        let claims_much = [1, 0, 0, 0, 1, 0, 0, 0, b'a', 6, 255, 255, 255, 255];
        assert!(matches!(
            Payload::decode_canonical(&claims_much),
            Err(PayloadError::Short { .. })
        ));
    }

    proptest! {
        #[test]
        fn payloads_and_bytes_correspond(payload in arbitrary::payload()) {
            let bytes = canonical(&payload);
            let back = Payload::decode_canonical(&bytes).unwrap();
            prop_assert_eq!(&back, &payload);
            prop_assert_eq!(canonical(&back), bytes);
        }

        #[test]
        fn every_truncation_is_an_error(payload in arbitrary::payload()) {
            let bytes = canonical(&payload);
            for len in 0..bytes.len() {
                prop_assert!(Payload::decode_canonical(&bytes[..len]).is_err());
            }
        }

        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(0u8..8, 0..60)) {
            if let Ok(payload) = Payload::decode_canonical(&bytes) {
                prop_assert_eq!(canonical(&payload), bytes);
            }
        }
    }
}
