//! Avro's parsing canonical form and its CRC-64 fingerprint.
//!
//! Two schemas of equal canonical form read each other's bytes without resolution, and a
//! single-object value names its schema by the form's fingerprint, so every implementation has
//! to agree on it. `apache-avro` 0.22 does not: it writes `{"type":"long"}` for a long with a
//! logical type where the specification, Java and Python write `"long"`.
//!
//! # Source
//! Apache Avro specification, "Parsing Canonical Form for Schemas" and "Schema Fingerprints".

use std::fmt::{self, Write as _};

use apache_avro::schema::{DecimalSchema, FixedSchema, InnerDecimalSchema, Schema, UuidSchema};

/// The polynomial of CRC-64-AVRO, which is also the fingerprint of no bytes.
const EMPTY: u64 = 0xc15d_213a_a4d7_a795;

/// The schema without whatever does not change its bytes.
pub(super) fn form(schema: &Schema) -> String {
    let mut out = String::new();
    write_schema(schema, &mut out).expect("writing to a string does not fail");
    out
}

/// CRC-64-AVRO.
pub(super) fn fingerprint(form: &str) -> u64 {
    form.bytes().fold(EMPTY, |crc, byte| {
        let low = (crc ^ u64::from(byte)) & 0xff;
        let entry = (0..8).fold(low, |entry, _| {
            entry >> 1 ^ (EMPTY & (entry & 1).wrapping_neg())
        });
        crc >> 8 ^ entry
    })
}

fn write_schema(schema: &Schema, out: &mut String) -> fmt::Result {
    match schema {
        Schema::Null => out.write_str("\"null\""),
        Schema::Boolean => out.write_str("\"boolean\""),
        Schema::Int | Schema::Date | Schema::TimeMillis => out.write_str("\"int\""),
        Schema::Long
        | Schema::TimeMicros
        | Schema::TimestampMillis
        | Schema::TimestampMicros
        | Schema::TimestampNanos
        | Schema::LocalTimestampMillis
        | Schema::LocalTimestampMicros
        | Schema::LocalTimestampNanos => out.write_str("\"long\""),
        Schema::Float => out.write_str("\"float\""),
        Schema::Double => out.write_str("\"double\""),
        Schema::Bytes
        | Schema::BigDecimal
        | Schema::Decimal(DecimalSchema {
            inner: InnerDecimalSchema::Bytes,
            ..
        })
        | Schema::Uuid(UuidSchema::Bytes) => out.write_str("\"bytes\""),
        Schema::String | Schema::Uuid(UuidSchema::String) => out.write_str("\"string\""),
        Schema::Ref { name } => write!(out, "\"{name}\""),
        Schema::Fixed(fixed)
        | Schema::Duration(fixed)
        | Schema::Uuid(UuidSchema::Fixed(fixed))
        | Schema::Decimal(DecimalSchema {
            inner: InnerDecimalSchema::Fixed(fixed),
            ..
        }) => write_fixed(fixed, out),
        Schema::Enum(schema) => {
            write!(
                out,
                r#"{{"name":"{}","type":"enum","symbols":["#,
                schema.name
            )?;
            write_list(&schema.symbols, out, |symbol, out| {
                write!(out, "\"{symbol}\"")
            })?;
            out.write_str("]}")
        }
        Schema::Array(schema) => {
            out.write_str(r#"{"type":"array","items":"#)?;
            write_schema(&schema.items, out)?;
            out.write_str("}")
        }
        Schema::Map(schema) => {
            out.write_str(r#"{"type":"map","values":"#)?;
            write_schema(&schema.types, out)?;
            out.write_str("}")
        }
        Schema::Union(schema) => {
            out.write_str("[")?;
            write_list(schema.variants(), out, write_schema)?;
            out.write_str("]")
        }
        Schema::Record(schema) => {
            write!(
                out,
                r#"{{"name":"{}","type":"record","fields":["#,
                schema.name
            )?;
            write_list(&schema.fields, out, |field, out| {
                write!(out, r#"{{"name":"{}","type":"#, field.name)?;
                write_schema(&field.schema, out)?;
                out.write_str("}")
            })?;
            out.write_str("]}")
        }
    }
}

fn write_fixed(fixed: &FixedSchema, out: &mut String) -> fmt::Result {
    write!(
        out,
        r#"{{"name":"{}","type":"fixed","size":{}}}"#,
        fixed.name, fixed.size
    )
}

fn write_list<T>(
    items: &[T],
    out: &mut String,
    write: impl Fn(&T, &mut String) -> fmt::Result,
) -> fmt::Result {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            out.write_str(",")?;
        }
        write(item, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use apache_avro::Schema;

    use super::{fingerprint, form};
    use crate::avro::SCHEMA_JSON;

    /// Forms and fingerprints as Python's `fastavro` gives them.
    #[test]
    fn other_implementations_give_the_same_form_and_fingerprint() {
        let ours = concat!(
            r#"{"name":"shoal.v1.Point","type":"record","fields":[{"name":"vector","type":["#,
            r#"{"type":"array","items":"float"},{"name":"shoal.v1.PackedVector","type":"record","#,
            r#""fields":[{"name":"encoding","type":{"name":"shoal.v1.VectorEncoding","type":"#,
            r#""enum","symbols":["F32","F16","BF16","I8"]}},{"name":"data","type":"bytes"}]}]},"#,
            r#"{"name":"payload","type":{"type":"map","values":["string","long","double","#,
            r#""boolean",{"name":"shoal.v1.Timestamp","type":"record","fields":[{"name":"millis","#,
            r#""type":"long"}]},{"type":"array","items":"string"}]}},{"name":"model","type":"#,
            r#"["null","string"]},{"name":"event_time","type":["null","long"]},"#,
            r#"{"name":"expires_at","type":["null","long"]}]}"#,
        );
        let other = r#"{"type":"record","name":"R","namespace":"a.b","doc":"d","aliases":["Q"],
            "fields":[
            {"name":"f","type":{"type":"fixed","name":"F","size":4},"order":"ignore"},
            {"name":"g","type":"F"},
            {"name":"h","type":{"type":"fixed","name":"c.G","size":2}},
            {"name":"i","type":{"type":"record","name":"c.S","fields":[
                {"name":"j","type":["null","c.G",{"type":"enum","name":"E","symbols":["X","Y"]}]},
                {"name":"k","type":{"type":"map","values":"E"},"default":{}}]}},
            {"name":"l","type":{"type":"bytes","logicalType":"decimal","precision":4,"scale":2}},
            {"name":"m","type":{"type":"int","logicalType":"date"}}]}"#;
        for (json, expected, crc) in [
            (SCHEMA_JSON, ours, 0xba31_cde2_2729_0ba6),
            (
                other,
                r#"{"name":"a.b.R","type":"record","fields":[{"name":"f","type":{"name":"a.b.F","type":"fixed","size":4}},{"name":"g","type":"a.b.F"},{"name":"h","type":{"name":"c.G","type":"fixed","size":2}},{"name":"i","type":{"name":"c.S","type":"record","fields":[{"name":"j","type":["null","c.G",{"name":"c.E","type":"enum","symbols":["X","Y"]}]},{"name":"k","type":{"type":"map","values":"c.E"}}]}},{"name":"l","type":"bytes"},{"name":"m","type":"int"}]}"#,
                0x7b2e_0e96_5cbe_b87f,
            ),
        ] {
            let form = form(&Schema::parse_str(json).unwrap());
            assert_eq!(form, expected);
            assert_eq!(fingerprint(&form), crc);
        }
        assert_eq!(fingerprint(""), 0xc15d_213a_a4d7_a795);
        assert_eq!(fingerprint("hello world"), 2_906_301_498_937_520_992);
    }
}
