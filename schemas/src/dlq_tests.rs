//! Entries read back as the record they were made of; residency lets nothing out.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use proptest::prelude::*;

use super::{Entry, EntryError, Item, Mark, OFFSET, REASON, entry, mark};
use crate::{Offset, Partition, Reason, Record, Rejection, Source};

fn source() -> Source {
    Source {
        cluster: "cluster-1".into(),
        topic: "embeddings.docs".into(),
        partition: Partition(3),
    }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn record() -> impl Strategy<Value = Record> {
    let headers = proptest::collection::vec(("[a-z-]{1,12}", bytes()), 0..4);
    let content = (
        proptest::option::of(bytes()),
        proptest::option::of(bytes()),
        headers,
        any::<i64>(),
    );
    content.prop_map(|(key, value, headers, timestamp_ms)| Record {
        key,
        value,
        headers,
        timestamp_ms,
    })
}

#[test]
fn a_mark_names_its_entry_and_is_none_itself() {
    let rejection = Rejection::new(Reason::TooLarge, "planted");
    let refused = Record {
        key: Some(Bytes::from_static(b"a")),
        value: Some(Bytes::from_static(b"content")),
        ..Record::default()
    };
    let made = entry(&refused, &rejection, &source(), Offset(7), 1000);
    let Item::Entry(read) = Item::decode(&made).unwrap() else {
        panic!("an entry is no mark");
    };
    let word = mark(&read, 2000);
    let expected = Mark {
        source: source(),
        offset: Offset(7),
        time_ms: 2000,
    };
    assert_eq!(Item::decode(&word).unwrap(), Item::Mark(expected));
    assert_eq!(Entry::decode(&word), Err(EntryError::Missing(REASON)));
    assert_eq!(
        (word.key.as_ref(), word.value),
        (refused.key.as_ref(), Some(Bytes::new()))
    );
}

proptest! {
    #[test]
    fn every_entry_gives_back_its_record(
        record in record(),
        reason in proptest::sample::select(&Reason::ALL[..10]),
        detail in "\\PC{0,40}",
        offset: u64,
        now_ms in 0u64..1 << 48,
    ) {
        let rejection = Rejection::new(reason, detail);
        let made = entry(&record, &rejection, &source(), Offset(offset), now_ms);
        prop_assert_eq!(&made.key, &record.key);
        prop_assert_eq!(&made.value, &record.value);
        let read = Entry::decode(&made).unwrap();
        let expected = Entry { rejection, source: source(), offset: Offset(offset), time_ms: now_ms, record };
        prop_assert_eq!(&read, &expected);
        prop_assert!(!read.is_withheld());
        // Refused again, it is still the first record that is kept.
        let again = entry(&read.record, &read.rejection, &read.source, read.offset, read.time_ms);
        prop_assert_eq!(again, made);
    }
}

#[test]
fn a_residency_entry_holds_no_content() {
    let record = Record {
        key: Some(Bytes::from_static(b"secret-key")),
        value: Some(Bytes::from_static(b"secret-value")),
        headers: vec![
            ("shoal-residency".to_owned(), Bytes::from_static(b"eu")),
            ("x-note".to_owned(), Bytes::from_static(b"secret-note")),
        ],
        timestamp_ms: 5,
    };
    let rejection = Rejection::new(Reason::Residency, "record is tagged eu, this is us");
    let made = entry(&record, &rejection, &source(), Offset(9), 10);
    assert_eq!(made.value.as_deref(), Some(&b""[..]));
    let key = made.key.clone().unwrap();
    assert_eq!(key.len(), 32);
    assert!(key.iter().all(u8::is_ascii_hexdigit));
    assert!(!format!("{made:?}").contains("secret"));
    let read = Entry::decode(&made).unwrap();
    assert!(read.is_withheld());
    assert_eq!(read.offset, Offset(9));
    assert_eq!(read.record.header("shoal-residency"), Some(&b"eu"[..]));
}

#[test]
fn a_header_that_lacks_or_fails_is_named() {
    let rejection = Rejection::new(Reason::BadKey, "record has no key");
    let made = entry(&Record::default(), &rejection, &source(), Offset(1), 2);

    let mut lacking = made.clone();
    lacking.headers.retain(|(name, _)| name != OFFSET);
    assert_eq!(Entry::decode(&lacking), Err(EntryError::Missing(OFFSET)));

    let mut failing = made.clone();
    failing
        .headers
        .push((OFFSET.to_owned(), Bytes::from_static(b"-1")));
    let refused = Entry::decode(&failing).unwrap_err();
    assert!(refused.to_string().contains("`-1`"), "{refused}");

    let mut newer = made;
    newer
        .headers
        .push((REASON.to_owned(), Bytes::from_static(b"too_odd")));
    assert!(matches!(Entry::decode(&newer), Err(EntryError::Reason(_))));
}
