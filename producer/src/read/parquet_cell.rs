//! One cell of a Parquet column as an id, a time or a payload value.

use arrow_array::{
    Array,
    cast::AsArray,
    types::{
        Date32Type, Date64Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type,
        Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
        UInt64Type,
    },
};
use arrow_schema::{DataType, TimeUnit};
use shoal_schemas::Value;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Whether a column of this type can hold ids.
pub(super) fn is_id(kind: &DataType) -> bool {
    kind == &DataType::Utf8 || kind.is_integer()
}

/// Whether a column of this type can hold times; whole numbers are milliseconds.
pub(super) fn is_time(kind: &DataType) -> bool {
    matches!(
        kind,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Int64
    )
}

/// Whether a column of this type can be a payload field.
pub(super) fn is_payload(kind: &DataType) -> bool {
    match kind {
        DataType::Boolean
        | DataType::Utf8
        | DataType::Float16
        | DataType::Float32
        | DataType::Float64
        | DataType::Timestamp(..)
        | DataType::Date32
        | DataType::Date64 => true,
        DataType::List(item) => item.data_type() == &DataType::Utf8,
        other => other.is_integer(),
    }
}

/// A cell of an id column as text; `None` if it is empty.
pub(super) fn id(column: &dyn Array, at: usize) -> Option<String> {
    match value(column, at) {
        Ok(Some(Value::String(text))) => Some(text),
        Ok(Some(Value::Integer(number))) => Some(number.to_string()),
        // The one whole number that is no payload value.
        Err(_) => Some(
            column
                .as_primitive_opt::<UInt64Type>()?
                .value(at)
                .to_string(),
        ),
        _ => None,
    }
}

/// A cell of a time column in milliseconds since the Unix epoch; `None` if it is empty.
pub(super) fn time_ms(column: &dyn Array, at: usize) -> Option<i64> {
    match value(column, at) {
        Ok(Some(Value::Timestamp(millis) | Value::Integer(millis))) => Some(millis),
        _ => None,
    }
}

/// A cell as a payload value; `None` if it is empty.
///
/// # Errors
/// What is wrong with it, to follow the column's name.
pub(super) fn value(column: &dyn Array, at: usize) -> Result<Option<Value>, String> {
    if column.is_null(at) {
        return Ok(None);
    }
    macro_rules! cell {
        ($kind:ty) => {
            column.as_primitive::<$kind>().value(at)
        };
    }
    let found = match column.data_type() {
        DataType::Boolean => Value::Boolean(column.as_boolean().value(at)),
        DataType::Utf8 => Value::String(column.as_string::<i32>().value(at).to_owned()),
        DataType::Int8 => Value::Integer(cell!(Int8Type).into()),
        DataType::Int16 => Value::Integer(cell!(Int16Type).into()),
        DataType::Int32 => Value::Integer(cell!(Int32Type).into()),
        DataType::Int64 => Value::Integer(cell!(Int64Type)),
        DataType::UInt8 => Value::Integer(cell!(UInt8Type).into()),
        DataType::UInt16 => Value::Integer(cell!(UInt16Type).into()),
        DataType::UInt32 => Value::Integer(cell!(UInt32Type).into()),
        DataType::UInt64 => {
            let number = cell!(UInt64Type);
            let whole = i64::try_from(number);
            Value::Integer(
                whole.map_err(|_| format!("is {number}, allowed are numbers below 2^63"))?,
            )
        }
        DataType::Float16 => Value::Float(cell!(Float16Type).to_f64()),
        DataType::Float32 => Value::Float(cell!(Float32Type).into()),
        DataType::Float64 => Value::Float(cell!(Float64Type)),
        DataType::Date32 => Value::Timestamp(i64::from(cell!(Date32Type)) * DAY_MS),
        DataType::Date64 => Value::Timestamp(cell!(Date64Type)),
        DataType::Timestamp(unit, _) => Value::Timestamp(match unit {
            TimeUnit::Second => cell!(TimestampSecondType).saturating_mul(1000),
            TimeUnit::Millisecond => cell!(TimestampMillisecondType),
            TimeUnit::Microsecond => cell!(TimestampMicrosecondType).div_euclid(1000),
            TimeUnit::Nanosecond => cell!(TimestampNanosecondType).div_euclid(1_000_000),
        }),
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(at);
            let texts = items
                .as_string_opt::<i32>()
                .ok_or("is a list of other things than texts")?;
            let texts: Option<Vec<String>> =
                texts.iter().map(|text| text.map(str::to_owned)).collect();
            Value::Strings(texts.ok_or("is a list with empty items")?)
        }
        other => return Err(format!("is of type {other}, which no payload field has")),
    };
    Ok(Some(found))
}
