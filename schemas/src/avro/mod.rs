//! The Avro encoding of points: schema, encoder, decoders.
//!
//! Two framings are known, told apart by the first byte: the Confluent wire format (0x00 and the
//! schema's id in a registry) and Avro's single-object encoding (0xC3 0x01 and the schema's
//! fingerprint). Encoding and decoding with our own schema are written by hand, so that a vector
//! is one copy of its bytes. Any other writer schema is compiled once into a plan that walks
//! the bytes with the same cursor and matches fields by name.
//!
//! `apache-avro` parses schemas and serves as the oracle in tests. It does not decode values
//! here: it reads a record that is cut short as one full of nulls, and it boxes every component.

mod canonical;
mod cursor;
mod decode;
mod encode;
mod plan;
mod resolve;
mod schema;

pub use encode::{Framing, encode};
pub use schema::{
    LookupError, NoRegistry, SCHEMA_JSON, SchemaError, WriterSchema, WriterSchemas, fingerprint,
};

pub(crate) use decode::{decode_confluent, decode_single_object};

/// First byte of the Confluent wire format.
pub const CONFLUENT_MAGIC: u8 = 0x00;
/// First two bytes of the single-object encoding.
pub const SINGLE_OBJECT_MAGIC: [u8; 2] = [0xC3, 0x01];

#[cfg(test)]
mod tests;
