//! A foreign writer schema, unfolded into what decoding needs.
//!
//! References are replaced by what they name, so walking needs no table of names. A schema that
//! refers to itself is refused: its values could nest without end, and a chain of lists has no
//! meaning for a point.

use std::collections::HashMap;

use apache_avro::schema::{
    DecimalSchema, InnerDecimalSchema, Name, NamespaceRef, Schema, UuidSchema,
};

/// Most nodes of one unfolded schema.
const MAX_NODES: usize = 10_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// Why a schema is not unfolded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A type contains itself, or nests too deep.
    #[error("schema nests over {MAX_DEPTH} levels deep, or `{name}` contains itself")]
    TooDeep {
        /// The type at which unfolding gave up.
        name: String,
    },
    /// Too many types once references are replaced.
    #[error("schema unfolds into over {MAX_NODES} types")]
    TooLarge,
    /// A reference to nothing.
    #[error("schema refers to `{name}`, which it does not define")]
    Undefined {
        /// The reference.
        name: String,
    },
}

/// One type of a writer schema.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Boolean,
    Int,
    Long,
    /// A moment, in units of which so many make a millisecond.
    Moment {
        per_milli: i64,
    },
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    Enum(Vec<String>),
    Array(Box<Self>),
    Map(Box<Self>),
    Union(Vec<Self>),
    Record {
        name: String,
        fields: Vec<(String, Self)>,
    },
}

impl Node {
    /// Unfolds a schema whose named types are all in `names`.
    pub(super) fn compile(
        schema: &Schema,
        names: &HashMap<Name, &Schema>,
    ) -> Result<Self, PlanError> {
        let mut compiler = Compiler { names, nodes: 0 };
        compiler.node(schema, None, 0)
    }

    /// What the type is called in messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Boolean => "a boolean".to_owned(),
            Self::Int => "an int".to_owned(),
            Self::Long => "a long".to_owned(),
            Self::Moment { .. } => "a timestamp".to_owned(),
            Self::Float => "a float".to_owned(),
            Self::Double => "a double".to_owned(),
            Self::Bytes => "bytes".to_owned(),
            Self::Text => "a string".to_owned(),
            Self::Fixed(size) => format!("a fixed of {size} bytes"),
            Self::Enum(_) => "an enum".to_owned(),
            Self::Array(items) => format!("an array of {}", items.describe()),
            Self::Map(values) => format!("a map of {}", values.describe()),
            Self::Union(_) => "a union".to_owned(),
            Self::Record { name, .. } => format!("a record `{name}`"),
        }
    }

    /// The fewest bytes a value takes; 0 only if every value takes none.
    pub(super) fn min_bytes(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Float => 4,
            Self::Double => 8,
            Self::Fixed(size) => *size,
            Self::Record { fields, .. } => {
                let sizes = fields.iter().map(|(_, node)| node.min_bytes());
                sizes.fold(0, usize::saturating_add)
            }
            _ => 1,
        }
    }
}

struct Compiler<'a> {
    names: &'a HashMap<Name, &'a Schema>,
    nodes: usize,
}

impl Compiler<'_> {
    fn node(
        &mut self,
        schema: &Schema,
        namespace: NamespaceRef<'_>,
        depth: usize,
    ) -> Result<Node, PlanError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(PlanError::TooLarge);
        }
        if depth > MAX_DEPTH {
            return Err(PlanError::TooDeep {
                name: schema.name().map_or_else(String::new, Name::to_string),
            });
        }
        let depth = depth + 1;
        Ok(match schema {
            Schema::Null => Node::Null,
            Schema::Boolean => Node::Boolean,
            Schema::Int | Schema::Date | Schema::TimeMillis => Node::Int,
            // A local time is no moment: it lacks its zone.
            Schema::Long
            | Schema::TimeMicros
            | Schema::LocalTimestampMillis
            | Schema::LocalTimestampMicros
            | Schema::LocalTimestampNanos => Node::Long,
            Schema::TimestampMillis => Node::Moment { per_milli: 1 },
            Schema::TimestampMicros => Node::Moment { per_milli: 1_000 },
            Schema::TimestampNanos => Node::Moment {
                per_milli: 1_000_000,
            },
            Schema::Float => Node::Float,
            Schema::Double => Node::Double,
            Schema::Bytes
            | Schema::BigDecimal
            | Schema::Decimal(DecimalSchema {
                inner: InnerDecimalSchema::Bytes,
                ..
            })
            | Schema::Uuid(UuidSchema::Bytes) => Node::Bytes,
            Schema::String | Schema::Uuid(UuidSchema::String) => Node::Text,
            Schema::Fixed(fixed)
            | Schema::Duration(fixed)
            | Schema::Uuid(UuidSchema::Fixed(fixed))
            | Schema::Decimal(DecimalSchema {
                inner: InnerDecimalSchema::Fixed(fixed),
                ..
            }) => Node::Fixed(fixed.size),
            Schema::Enum(schema) => Node::Enum(schema.symbols.clone()),
            Schema::Array(schema) => {
                Node::Array(Box::new(self.node(&schema.items, namespace, depth)?))
            }
            Schema::Map(schema) => {
                Node::Map(Box::new(self.node(&schema.types, namespace, depth)?))
            }
            Schema::Union(schema) => {
                let branches = schema.variants().iter();
                let branches = branches.map(|branch| self.node(branch, namespace, depth));
                Node::Union(branches.collect::<Result<_, _>>()?)
            }
            Schema::Record(schema) => {
                let name = schema.name.fully_qualified_name(namespace);
                let mut fields = Vec::new();
                for field in &schema.fields {
                    let node = self.node(&field.schema, name.namespace(), depth)?;
                    fields.push((field.name.clone(), node));
                }
                Node::Record {
                    name: name.to_string(),
                    fields,
                }
            }
            Schema::Ref { name } => {
                let name = name.fully_qualified_name(namespace);
                match self.names.get(name.as_ref()) {
                    // The reference is no type of its own, but counts as a level all the same.
                    Some(named) => self.node(named, name.namespace(), depth)?,
                    None => {
                        return Err(PlanError::Undefined {
                            name: name.to_string(),
                        });
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use apache_avro::schema::{ResolvedSchema, Schema};

    use super::{Node, PlanError};

    fn compile(json: &str) -> Result<Node, PlanError> {
        let schema = Schema::parse_str(json).unwrap();
        let names = ResolvedSchema::new(&schema).unwrap();
        Node::compile(&schema, names.get_names())
    }

    #[test]
    fn a_reference_becomes_what_it_names() {
        let node = compile(
            r#"{"type":"record","name":"a.R","fields":[
                {"name":"x","type":{"type":"fixed","name":"F","size":3}},
                {"name":"y","type":{"type":"array","items":"a.F"}},
                {"name":"z","type":["null","F"]}]}"#,
        );
        let Node::Record { name, fields } = node.unwrap() else {
            panic!("a record is a record");
        };
        assert_eq!(name, "a.R");
        assert_eq!(fields[0].1, Node::Fixed(3));
        assert_eq!(fields[1].1, Node::Array(Box::new(Node::Fixed(3))));
        assert_eq!(fields[2].1, Node::Union(vec![Node::Null, Node::Fixed(3)]));
    }

    #[test]
    fn a_schema_that_contains_itself_or_explodes_is_refused() {
        let list = r#"{"type":"record","name":"L","fields":[{"name":"n","type":["null","L"]}]}"#;
        assert!(matches!(compile(list), Err(PlanError::TooDeep { .. })));

        let doubling = (1..20).fold(
            r#"{"type":"record","name":"R0","fields":[{"name":"a","type":"long"},{"name":"b","type":"long"}]}"#.to_owned(),
            |inner, n| format!(
                r#"{{"type":"record","name":"R{n}","fields":[{{"name":"a","type":{inner}}},{{"name":"b","type":"R{}"}}]}}"#,
                n - 1
            ),
        );
        assert_eq!(compile(&doubling), Err(PlanError::TooLarge));
    }
}
