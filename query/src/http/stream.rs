//! `POST .../search/stream`: searches as NDJSON, one a line, in a body of any length.
//!
//! Each is answered by a line, in the order in which they are done, at most so many at once, while the body is still read:
//! [`crate::serve::stream`], over HTTP. A first line that does not read refuses the whole call; a later one is answered
//! as a search that failed. One that is too long, or not UTF-8, is answered so as well and ends the stream.

use std::{convert::Infallible, io};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use futures::{Stream, StreamExt as _, TryStreamExt as _, future, stream};
use serde::Serialize;
use shoal_runtime::grpc::code_name;
use shoal_schemas::{
    headers::TRACEPARENT,
    v1::{self, search_stream_request::Call as Wanted, search_stream_response::Outcome},
};
use tokio_util::{
    codec::{FramedRead, LinesCodec, LinesCodecError},
    io::StreamReader,
};

use crate::{
    http::{
        Api, Failure, FailureText,
        answer::{self, Coverage, List, Parts},
        request,
    },
    serve::{driven::driven, status::Refusal, stream::Asker},
};

/// The media type of both bodies.
const NDJSON: &str = "application/x-ndjson";

/// What a line is answered.
#[derive(Serialize)]
struct Answered<'a> {
    request_id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<answer::Searched<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<FailureText<'a>>,
}

pub(crate) async fn search_stream(
    State(api): State<Api>,
    Path(collection): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let trace = headers.get(TRACEPARENT);
    let asker = Asker {
        coordinator: api.coordinator.clone(),
        default_deadline: api.default_deadline,
        trace: trace
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned),
    };
    let requests = requests(collection, api.max_body_bytes, body);
    let stop = api.streams.cancel.clone();
    let mut requests = Box::pin(requests.take_until(stop.cancelled_owned()));
    // It waits for the first line: what that is, the status says.
    let first = match requests.next().await {
        Some(first) => Some(Ok(first.map_err(|unread| unread.refusal)?)),
        None => None,
    };
    let requests = stream::iter(first).chain(requests);
    let answers = requests.map(move |request| {
        let asker = asker.clone();
        async move {
            let line = match request {
                Ok(request) => {
                    let parts = parts_of(&request);
                    line(&asker.answer(request).await, parts)
                }
                Err(Unread {
                    request_id,
                    refusal,
                }) => written(&Answered {
                    request_id,
                    response: None,
                    failure: Some(FailureText::from(&refusal)),
                }),
            };
            Ok::<_, Infallible>(line)
        }
    });
    let body = Body::from_stream(driven(api.streams.most, answers));
    Ok(([(CONTENT_TYPE, NDJSON)], body).into_response())
}

/// A line that asks for nothing that can be answered.
struct Unread {
    /// 0 where it is no JSON.
    request_id: u64,
    refusal: Refusal,
}

/// What the lines of a body ask for. One that does not read is told by its number; one that is too long, or no text, is
/// the last.
fn requests(
    collection: String,
    most_bytes: usize,
    body: Body,
) -> impl Stream<Item = Result<v1::SearchStreamRequest, Unread>> {
    let body = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    let lines = FramedRead::new(body, LinesCodec::new_with_max_length(most_bytes));
    stream::iter(1u64..)
        .zip(lines)
        .filter_map(move |(number, line)| {
            let unread = |request_id, why: String| Unread {
                request_id,
                refusal: Refusal::invalid(format!("line {number} {why}")),
            };
            let read = match line {
                Ok(line) if line.trim().is_empty() => None,
                Ok(line) => Some(request(&line, &collection).map_err(|(id, why)| unread(id, why))),
                Err(LinesCodecError::MaxLineLengthExceeded) => Some(Err(unread(
                    0,
                    format!("is longer than {most_bytes} bytes (`query.max_message_bytes`); the stream ends here"),
                ))),
                Err(LinesCodecError::Io(error)) => Some(Err(unread(
                    0,
                    format!("does not read: {error}; the stream ends here"),
                ))),
            };
            future::ready(read)
        })
}

/// What a line asks for; or its id, as far as it has one, and what is wrong with it.
fn request(line: &str, collection: &str) -> Result<v1::SearchStreamRequest, (u64, String)> {
    let line: request::Line = serde_json::from_str(line)
        .map_err(|error| (0, format!("is not the JSON asked for: {error}")))?;
    let request_id = line.request_id;
    line.into_proto(collection)
        .map_err(|refusal| (request_id, format!("is refused: {}", refusal.message())))
}

/// What the answer is to have of a hit.
fn parts_of(request: &v1::SearchStreamRequest) -> Parts {
    match &request.call {
        Some(Wanted::Search(search)) => Parts::of_search(search),
        Some(Wanted::Recommend(wanted)) => wanted.query.as_ref().map(Parts::of).unwrap_or_default(),
        None => Parts::default(),
    }
}

fn line(answer: &v1::SearchStreamResponse, parts: Parts) -> Vec<u8> {
    let (mut response, mut failure) = (None, None);
    match &answer.outcome {
        Some(Outcome::Response(found)) => {
            response = Some(answer::Searched {
                found: List::of(&found.hits, &found.groups, &found.explain, parts),
                coverage: Coverage::of(&found.coverage),
            });
        }
        Some(Outcome::Failure(why)) => {
            failure = Some(FailureText {
                code: code_name(why.code.into()),
                message: &why.message,
            });
        }
        None => {}
    }
    written(&Answered {
        request_id: answer.request_id,
        response,
        failure,
    })
}

fn written(answered: &Answered<'_>) -> Vec<u8> {
    let mut line = serde_json::to_vec(answered).expect("our own answers have text keys only");
    line.push(b'\n');
    line
}
