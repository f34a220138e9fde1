//! Gathers the declared fields of rows and makes the sealed form of them.
//!
//! A payload's value of another kind than declared is left out, as if it were absent: that is
//! what a filter takes it for.

use shoal_schemas::{
    FieldKind,
    filter::Fields,
    payload::{Payload, Value},
};

use super::{
    keyed::Key,
    layout::{Column, Directory, Exists, Form, Keyed, Section},
    rows::{Span, at, row},
    sealed::{ReadError, Sealed},
};

/// A key that one row in this many has is frequent: its rows are bits, not a list.
const FREQUENT_SHARE: usize = 32;
/// With fewer rows than this a key is not frequent, whatever its share.
const FREQUENT_ROWS: usize = 64;
/// Ranks are kept if one row in this many has a key.
const RANKED_SHARE: usize = 8;

/// Declared fields of rows that are about to be sealed.
#[derive(Debug)]
pub struct Columns {
    span: Span,
    fields: Vec<Gathered>,
}

#[derive(Debug)]
struct Gathered {
    name: String,
    kind: FieldKind,
    exists: Vec<u32>,
    whole: Vec<(i64, u32)>,
    float: Vec<(Finite, u32)>,
    texts: Texts,
}

/// Texts one behind the other: a text of its own for every row would cost an allocation each.
#[derive(Debug, Default)]
struct Texts {
    bytes: Vec<u8>,
    /// Where a text begins, where it ends, and the row.
    entries: Vec<(usize, usize, u32)>,
}

/// A float that is not NaN, with zero as one value.
#[derive(Clone, Copy, Debug)]
struct Finite(f64);

impl Columns {
    /// No rows yet; the first is row 0.
    pub fn new(fields: &Fields) -> Self {
        Self::from_row(fields, 0)
    }

    pub(super) fn from_row(fields: &Fields, first: u32) -> Self {
        let gathered = fields.iter().map(|(name, kind)| Gathered {
            name: name.clone(),
            kind: *kind,
            exists: Vec::new(),
            whole: Vec::new(),
            float: Vec::new(),
            texts: Texts::default(),
        });
        Self {
            span: Span { first, end: first },
            fields: gathered.collect(),
        }
    }

    /// Adds a row's payload. Rows come in any order, each once; a number that is passed over
    /// counts as a row without fields.
    pub fn push(&mut self, row: u32, payload: &Payload) {
        debug_assert!(row >= self.span.first, "rows before the first one");
        self.extend_to(row.saturating_add(1));
        for field in &mut self.fields {
            let value = payload.0.get(&field.name);
            if let Some(value) = value.filter(|value| field.kind.holds(value)) {
                field.push(row, value);
            }
        }
    }

    /// Says that there are rows up to `end`, exclusive, with or without fields.
    pub fn extend_to(&mut self, end: u32) {
        self.span.end = self.span.end.max(end);
    }

    /// Adds the rows of a sealed index, without their payloads: `place` gives a row's new number,
    /// or `None` if it is left out.
    ///
    /// # Errors
    /// [`ReadError`]; with [`ReadError::NotIndexed`] nothing was added yet.
    pub fn absorb<B: AsRef<[u8]>>(
        &mut self,
        from: &Sealed<B>,
        place: impl Fn(u32) -> Option<u32>,
    ) -> Result<(), ReadError> {
        for field in &self.fields {
            from.column(&field.name, Some(field.kind))?;
        }
        let span = from.span();
        for row in (span.first..span.end).filter_map(&place) {
            self.extend_to(row.saturating_add(1));
        }
        for field in &mut self.fields {
            let name = field.name.clone();
            from.read_column(&name, |told, rows| {
                field.absorb(told, rows.iter().filter_map(&place));
            })?;
        }
        Ok(())
    }

    /// The sealed form.
    pub fn seal(self) -> Vec<u8> {
        let mut body = Body::default();
        let columns = self.fields.into_iter();
        let columns = columns.map(|field| field.seal(self.span, &mut body));
        let directory = Directory {
            span: self.span,
            columns: columns.collect(),
        };
        let mut out = directory.encode(body.0.len());
        out.append(&mut body.0);
        out
    }
}

/// What a column is read back as: its rows for presence, or those of one key.
#[derive(Clone, Copy)]
pub(super) enum Told<'a> {
    Exists,
    Key(Key<'a>),
}

impl Gathered {
    fn push(&mut self, row: u32, value: &Value) {
        self.exists.push(row);
        match value {
            Value::Integer(number) | Value::Timestamp(number) => self.whole.push((*number, row)),
            Value::Boolean(truth) => self.whole.push((i64::from(*truth), row)),
            // No condition but presence is ever met by NaN.
            Value::Float(number) if number.is_nan() => {}
            Value::Float(number) => self.float.push((Finite(*number + 0.0), row)),
            Value::String(text) => self.texts.push(text.as_bytes(), [row]),
            Value::Strings(texts) => {
                let texts = texts.iter();
                texts.for_each(|text| self.texts.push(text.as_bytes(), [row]));
            }
        }
    }

    fn absorb(&mut self, told: Told<'_>, rows: impl Iterator<Item = u32>) {
        match told {
            Told::Exists => self.exists.extend(rows),
            Told::Key(Key::Whole(key)) => self.whole.extend(rows.map(|row| (key, row))),
            Told::Key(Key::Float(key)) if key.is_nan() => {}
            Told::Key(Key::Float(key)) => self.float.extend(rows.map(|row| (Finite(key), row))),
            Told::Key(Key::Text(key)) => self.texts.push(key, rows),
        }
    }

    fn seal(mut self, span: Span, body: &mut Body) -> Column {
        self.exists.sort();
        self.exists.dedup();
        let exists = match self.exists.len() {
            0 => Exists::None,
            len if len == span.len() => Exists::All,
            len if len * FREQUENT_SHARE <= span.len() => {
                Exists::List(body.section(|out| put_rows(out, self.exists.iter().copied())))
            }
            len => {
                let bits = body.section(|out| put_bits(out, &self.exists, span));
                Exists::Bits(row(len), bits)
            }
        };
        let texts = self.texts.entries.iter().map(|(start, end, row)| {
            let text = &self.texts.bytes[*start..*end];
            (text, *row)
        });
        let keyed = [
            seal_keys(self.whole, span, body),
            seal_keys(self.float, span, body),
            seal_keys(texts.collect(), span, body),
        ];
        Column {
            name: self.name,
            kind: self.kind,
            exists,
            keyed: keyed.into_iter().flatten().collect(),
        }
    }
}

impl Texts {
    fn push(&mut self, text: &[u8], rows: impl IntoIterator<Item = u32>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(text);
        let end = self.bytes.len();
        let entries = rows.into_iter().map(|row| (start, end, row));
        self.entries.extend(entries);
    }
}

/// Writes keys and their rows; `None` if there are none.
fn seal_keys<K: SealedKey>(
    mut entries: Vec<(K, u32)>,
    span: Span,
    body: &mut Body,
) -> Option<Keyed> {
    // Mostly runs that are sorted already, which the stable sort merges.
    entries.sort();
    entries.dedup();
    if entries.is_empty() {
        return None;
    }
    let groups: Vec<&[(K, u32)]> = entries.chunk_by(|a, b| a.0 == b.0).collect();
    let ranks = ranks(&groups, span);
    let several = ranks.is_none();
    let is_frequent = |group: &&[(K, u32)]| {
        group.len() >= FREQUENT_ROWS && group.len() * FREQUENT_SHARE >= span.len()
    };
    let rows_of = |group: &[(K, u32)]| group.iter().map(|(_, row)| *row).collect::<Vec<_>>();
    let keys = groups.iter().filter_map(|group| Some(group.first()?.0));
    let (keys, texts) = K::put(&keys.collect::<Vec<_>>(), body);
    let rare = || groups.iter().filter(|group| !is_frequent(group));
    let rows = body.section(|out| {
        rare().for_each(|group| put_rows(out, rows_of(group).into_iter()));
    });
    let starts = body.section(|out| {
        if groups
            .iter()
            .all(|group| group.len() == 1 && !is_frequent(group))
        {
            return;
        }
        let mut start = 0;
        put_rows(out, [0].into_iter());
        for group in &groups {
            start += if is_frequent(group) { 0 } else { group.len() };
            put_rows(out, [row(start)].into_iter());
        }
    });
    let frequent = || {
        groups
            .iter()
            .enumerate()
            .filter(|(_, group)| is_frequent(group))
    };
    let frequents = body.section(|out| {
        frequent().for_each(|(key, group)| {
            put_rows(out, [row(key), row(group.len())].into_iter());
        });
    });
    let bits = body.section(|out| {
        frequent().for_each(|(_, group)| put_bits(out, &rows_of(group), span));
    });
    let is_ranked = entries.len() * RANKED_SHARE >= span.len();
    let ranks = ranks.filter(|_| is_ranked);
    let ranks = body.section(|out| put_ranks(out, &ranks.unwrap_or_default(), groups.len()));
    Some(Keyed {
        form: K::FORM,
        several,
        keys,
        texts,
        starts,
        rows,
        frequents,
        bits,
        ranks,
    })
}

/// The key of every row; `None` if a row has several.
fn ranks<K>(groups: &[&[(K, u32)]], span: Span) -> Option<Vec<u32>> {
    let mut ranks = vec![u32::MAX; span.len()];
    for (key, group) in groups.iter().enumerate() {
        for (_, row_of_key) in *group {
            let rank = span
                .place(*row_of_key)
                .and_then(|place| ranks.get_mut(place));
            let rank = rank.filter(|rank| **rank == u32::MAX)?;
            *rank = row(key);
        }
    }
    Some(ranks)
}

fn put_rows(out: &mut Vec<u8>, rows: impl Iterator<Item = u32>) {
    rows.for_each(|row| out.extend(row.to_le_bytes()));
}

fn put_bits(out: &mut Vec<u8>, rows: &[u32], span: Span) {
    let first_word = at(span.first) / 64;
    let mut words = vec![0_u64; span.words()];
    for row in rows {
        if let Some(word) = words.get_mut(at(*row) / 64 - first_word) {
            *word |= 1 << (row % 64);
        }
    }
    words.iter().for_each(|word| out.extend(word.to_le_bytes()));
}

/// In as few bytes a row as the keys and the mark for none need.
fn put_ranks(out: &mut Vec<u8>, ranks: &[u32], keys: usize) {
    let width = match keys {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        _ => 4,
    };
    for rank in ranks {
        // The mark for none is all ones in every width.
        let bytes = rank.to_le_bytes();
        out.extend_from_slice(&bytes[..width]);
    }
}

/// The sections so far.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    /// Appends a section, and zeros up to a multiple of 8.
    fn section(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Section {
        let start = self.0.len();
        put(&mut self.0);
        let end = self.0.len();
        self.0.resize(end.next_multiple_of(8), 0);
        start..end
    }
}

/// A key that can be written.
trait SealedKey: Ord + Copy {
    const FORM: Form;

    /// Writes the sections `keys` and `texts`.
    fn put(keys: &[Self], body: &mut Body) -> (Section, Section);
}

impl SealedKey for i64 {
    const FORM: Form = Form::Whole;

    fn put(keys: &[Self], body: &mut Body) -> (Section, Section) {
        let put = |out: &mut Vec<u8>| keys.iter().for_each(|key| out.extend(key.to_le_bytes()));
        (body.section(put), body.section(|_| ()))
    }
}

impl SealedKey for Finite {
    const FORM: Form = Form::Float;

    fn put(keys: &[Self], body: &mut Body) -> (Section, Section) {
        let put = |out: &mut Vec<u8>| keys.iter().for_each(|key| out.extend(key.0.to_le_bytes()));
        (body.section(put), body.section(|_| ()))
    }
}

impl SealedKey for &[u8] {
    const FORM: Form = Form::Text;

    fn put(keys: &[Self], body: &mut Body) -> (Section, Section) {
        let starts = body.section(|out| {
            let mut start = 0_u64;
            out.extend(start.to_le_bytes());
            for key in keys {
                start += u64::try_from(key.len()).expect("an address has at most 64 bits");
                out.extend(start.to_le_bytes());
            }
        });
        let texts = body.section(|out| keys.iter().for_each(|key| out.extend_from_slice(key)));
        (starts, texts)
    }
}

impl Ord for Finite {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Finite {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Finite {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Finite {}
