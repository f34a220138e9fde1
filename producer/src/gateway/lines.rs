//! `POST /v1/collections/<name>/points`: points as NDJSON, a body of any length.
//!
//! A line is a point as `shoal publish` reads it. The body is read as it comes and written in
//! parts, so neither side holds it whole; when the log is slow, it is read no further. It stops at
//! the first line that is refused: those before it are written. The answer is one object at the
//! end, with the last token of each partition (of each region), which stand for all before them. What
//! the name stands for is looked up for each part, so that a long body follows a re-indexing.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, State},
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use futures::{Stream, StreamExt as _};
use serde_json::{json, value::RawValue};
use shoal_runtime::tasks::blocking;
use shoal_schemas::{
    ClusterId, Condition, Partition, Token, json::split_condition, patch::PatchError, v1,
};

use super::{
    CallError,
    calls::{MAX_POINTS, To, prepare},
    http::{Served, measured, refusal_of, traceparent},
    residency::{Rule, Sorted, Write, parts},
    resolve::Deadline,
    sending::Sent,
};
use crate::{Publisher, publisher::Prepared, trace};

/// Bytes of lines of one part, about.
const PART_BYTES: usize = 4 << 20;
/// How long lines that have come wait for more of them.
const LINGER: Duration = Duration::from_millis(20);

/// What was written, as far as it came.
#[derive(Default)]
struct Progress {
    points: u64,
    /// Of each region's cluster its own, and by topic too: what a name stands for may move meanwhile.
    last: BTreeMap<(ClusterId, Arc<str>, Partition), Token>,
}

impl Progress {
    fn note(&mut self, tokens: Vec<Token>) {
        for token in tokens {
            self.points += 1;
            let place = (token.cluster.clone(), token.topic.clone(), token.partition);
            self.last.insert(place, token);
        }
    }

    fn tokens(&self) -> Vec<String> {
        self.last.values().map(Token::to_string).collect()
    }
}

pub(super) async fn post_lines(
    State(served): State<Served>,
    Path(collection): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut progress = Progress::default();
    let body = body
        .into_data_stream()
        .map(|piece| piece.map_err(|error| error.to_string()));
    let write = async {
        let to = served.to(&collection, &headers)?;
        write(&served, &to, body, &mut progress).await
    };
    let written = measured("lines", trace::scope(traceparent(&headers), write)).await;
    let (points, tokens) = (progress.points, progress.tokens());
    match written {
        Ok(()) => Json(json!({ "points": points, "tokens": tokens })).into_response(),
        Err(error) => refusal_of(&error, json!({ "points": points, "tokens": tokens })),
    }
}

async fn write(
    served: &Served,
    to: &To<'_>,
    body: impl Stream<Item = Result<Bytes, String>> + Unpin,
    progress: &mut Progress,
) -> Result<(), CallError> {
    // A name that is none, and a residency that cannot be kept, are told before anything is read.
    let publisher = served.calls.publisher(to.collection).await?;
    served.calls.rule(to, &publisher)?;
    let mut lines = Lines::new(body, served.limit_bytes);
    let mut waiting: VecDeque<Sent> = VecDeque::new();
    let mut outcome = Ok(());
    while outcome.is_ok() {
        let part = lines.part().await;
        outcome = send(served, to, part, &mut waiting, progress).await;
        let room = if outcome.is_ok() {
            served.max_waiting
        } else {
            0
        };
        while waiting.len() > room {
            let Some(sent) = waiting.pop_front() else {
                break;
            };
            progress.note(served.calls.settle(sent).await?);
        }
        if outcome.is_ok() && lines.is_over {
            break;
        }
    }
    for sent in waiting {
        progress.note(served.calls.settle(sent).await?);
    }
    outcome
}

/// Checks the lines of a part by what the name stands for by now: a body may last longer than that is one
/// and the same. Sends those that are written here into its topic, and has other regions write theirs
/// before any later line is read: nothing else keeps their order.
///
/// What is told is the earliest fault.
async fn send(
    served: &Served,
    to: &To<'_>,
    Part {
        first,
        lines,
        ended,
    }: Part,
    waiting: &mut VecDeque<Sent>,
    progress: &mut Progress,
) -> Result<(), CallError> {
    if lines.is_empty() {
        return ended;
    }
    let calls = &served.calls;
    let publisher = calls.publisher(to.collection).await;
    let publisher = publisher.map_err(|source| at_line(first, source))?;
    let rule = calls.rule(to, &publisher);
    let rule = rule.map_err(|source| at_line(first, source))?;
    let checking = publisher.clone();
    let (sorted, read) = blocking(move || read_all(lines, &checking, &rule)).await;
    let Sorted { here, there } = sorted;
    if !here.is_empty() {
        let taken = calls.take(&publisher, &here);
        taken.map_err(|source| at_line(first, source))?;
        waiting.push_back(calls.send_waiting(&publisher, &here).await?);
    }
    if !there.is_empty() {
        let there = parts(there, |points| {
            Write::Upsert(v1::UpsertRequest {
                collection: to.collection.to_owned(),
                points,
                conditions: Vec::new(),
            })
        });
        // A body has no deadline, each part of it has.
        let deadline = Deadline::within(calls.deadline);
        let mut tokens = calls.elsewhere(there, deadline).await?;
        tokens.sort_unstable_by_key(|(at, _)| *at);
        progress.note(tokens.into_iter().map(|(_, token)| token).collect());
    }
    // A line that is refused stands before whatever ended the part.
    read.and(ended)
}

/// Some lines of a body.
struct Part {
    /// The number of its first line.
    first: u64,
    /// With their numbers.
    lines: Vec<(u64, Vec<u8>)>,
    /// Why nothing comes behind it, where that is a fault.
    ended: Result<(), CallError>,
}

/// Lines by where they are written, each with its place in the part.
type Checked = Sorted<Prepared, v1::Point>;

fn at_line(line: u64, source: CallError) -> CallError {
    CallError::Line {
        line,
        source: Box::new(source),
    }
}

/// Reads lines up to the first one that is refused.
fn read_all(
    lines: Vec<(u64, Vec<u8>)>,
    publisher: &Publisher,
    rule: &Rule,
) -> (Checked, Result<(), CallError>) {
    let mut checked = Checked::default();
    for (at, (number, line)) in lines.into_iter().enumerate() {
        match read(&line, publisher, rule) {
            Ok(one) => checked.append(at, one),
            Err(source) => return (checked, Err(at_line(number, source))),
        }
    }
    (checked, Ok(()))
}

fn read(line: &[u8], publisher: &Publisher, rule: &Rule) -> Result<Checked, CallError> {
    let unread = |detail: String| CallError::Body {
        wanted: r#"{"id": "...", "vector": [...]}"#,
        detail,
    };
    let text: Box<RawValue> =
        serde_json::from_slice(line).map_err(|error| unread(error.to_string()))?;
    let faulty = |source: PatchError| CallError::Patch { index: 0, source };
    let (text, condition) = split_condition(text).map_err(faulty)?;
    if condition != Condition::Always {
        let detail = "a line takes no condition; send the point with PUT".to_owned();
        return Err(unread(detail));
    }
    prepare(publisher, rule, vec![text])
}

/// A body's lines, blank ones left out.
struct Lines<S> {
    body: S,
    /// Read and not yet given.
    held: Vec<u8>,
    /// Where in `held` no line end was found yet.
    searched: usize,
    limit_bytes: usize,
    /// The number of the line given last, from 1; blank ones count.
    number: u64,
    is_over: bool,
}

impl<S: Stream<Item = Result<Bytes, String>> + Unpin> Lines<S> {
    fn new(body: S, limit_bytes: usize) -> Self {
        Self {
            body,
            held: Vec::new(),
            searched: 0,
            limit_bytes,
            number: 0,
            is_over: false,
        }
    }

    /// The next lines: as many as a part holds, or those that have come when no more do.
    async fn part(&mut self) -> Part {
        let mut lines = Vec::new();
        let mut held_bytes = 0;
        let ended = loop {
            if lines.len() >= MAX_POINTS || held_bytes >= PART_BYTES {
                break Ok(());
            }
            let next = if lines.is_empty() {
                self.next().await
            } else {
                match tokio::time::timeout(LINGER, self.next()).await {
                    Ok(next) => next,
                    Err(_elapsed) => break Ok(()),
                }
            };
            match next {
                Ok(Some(line)) => {
                    held_bytes += line.len();
                    lines.push((self.number, line));
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let first = lines.first().map_or(self.number, |(number, _)| *number);
        Part {
            first,
            lines,
            ended,
        }
    }

    /// The next line; `None` behind the last.
    ///
    /// # Cancel safety
    /// Safe: what was read of a line stays for the next call.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        loop {
            let unsearched = self.held.iter().skip(self.searched);
            let end = unsearched.clone().position(|byte| *byte == b'\n');
            if let Some(end) = end.map(|end| end + self.searched) {
                let rest = self.held.split_off(end + 1);
                let line = std::mem::replace(&mut self.held, rest);
                self.searched = 0;
                self.number += 1;
                if !is_blank(&line) {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.held.len();
            if self.held.len() > self.limit_bytes {
                let limit_bytes = self.limit_bytes;
                let source = CallError::BodyTooLarge { limit_bytes };
                return Err(at_line(self.number + 1, source));
            }
            match self.body.next().await {
                Some(Ok(piece)) => self.held.extend_from_slice(&piece),
                Some(Err(detail)) => {
                    let line = self.number;
                    return Err(CallError::BrokeOff { line, detail });
                }
                None if is_blank(&self.held) => {
                    self.is_over = true;
                    return Ok(None);
                }
                // The last line needs no end.
                None => self.held.push(b'\n'),
            }
        }
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use axum::body::Bytes;
    use futures::stream;

    use super::Lines;

    async fn lines(pieces: &[&'static str]) -> (Vec<String>, u64) {
        let pieces: Vec<_> = (pieces.iter())
            .map(|piece| Ok::<_, String>(Bytes::from_static(piece.as_bytes())))
            .collect();
        let mut lines = Lines::new(stream::iter(pieces), 20);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push(String::from_utf8(line).unwrap().trim_end().to_owned());
        }
        (found, lines.number)
    }

    #[tokio::test]
    async fn lines_are_whole_however_the_body_is_cut() {
        for pieces in [
            &["a\nbc\n\nd"][..],
            &["a", "\nb", "c\n", "\n", "d\n"],
            &["a\r\nbc\r\n \nd\n"],
        ] {
            let (found, number) = lines(pieces).await;
            assert_eq!(found, ["a", "bc", "d"], "{pieces:?}");
            assert_eq!(number, 4);
        }
        assert_eq!(lines(&[]).await, (vec![], 0));
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_held_for_ever() {
        let pieces = vec![Ok::<_, String>(Bytes::from_static(&[b'x'; 15])); 3];
        let mut lines = Lines::new(stream::iter(pieces), 20);
        let told = lines.next().await.unwrap_err().to_string();
        assert!(told.starts_with("line 1 is refused"), "{told}");
    }
}
