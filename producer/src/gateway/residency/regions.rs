//! The gateways of other regions, over gRPC: one connection an address, opened when first needed.
//!
//! A call is made again, by the region's next gateway, only where the one before cannot have got it: one that
//! broke off may still be at it, and a record written twice would stand in the log behind whatever
//! its caller writes next.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::Duration,
};

use shoal_runtime::{chain, grpc};
use shoal_schemas::{
    RegionName, Token,
    headers::{RESIDENCY, TRACEPARENT},
    v1::{self, publish_client::PublishClient, write_result::Outcome},
};
use tokio::runtime::Handle;
use tonic::{Code, ConnectError, Request, Status, metadata::MetadataValue, transport::Channel};
use tonic_types::StatusExt as _;

use super::{FORWARDED_FROM, ResidencyConfig};
use crate::{
    gateway::{resolve::Deadline, status},
    metrics::GATEWAY_REGION_POINTS_TOTAL,
    trace,
};

type Stub = PublishClient<Channel>;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// What a gateway says of a call as a whole before it has written anything of it.
const REFUSED: [Code; 8] = [
    Code::InvalidArgument,
    Code::NotFound,
    Code::FailedPrecondition,
    Code::ResourceExhausted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::PermissionDenied,
    Code::Unauthenticated,
];

/// Why another region has not written its part of a call, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// None of its gateways has got it.
    #[error(
        "no gateway of region `{region}` can be reached, nothing was written there; repeat the call ({why})"
    )]
    Away {
        /// The region.
        region: RegionName,
        /// What was tried.
        why: String,
    },
    /// One may have got it.
    #[error(
        "the gateway of region `{region}` gave no answer; records may still be written there: repeat the call, the same point twice is the same point ({why})"
    )]
    Lost {
        /// The region.
        region: RegionName,
        /// What happened.
        why: String,
        /// Whether there was no time left.
        late: bool,
    },
    /// It says no.
    #[error("region `{region}` refuses its part of the call: {message}")]
    Refused {
        /// The region.
        region: RegionName,
        /// A `google.rpc.Code` number.
        code: i32,
        /// Its words.
        message: String,
        /// When to come back, if it says so.
        retry_after: Option<Duration>,
    },
}

impl RegionError {
    /// The canonical code for a call that is complete points and deletes.
    pub(in crate::gateway) fn code(&self) -> Code {
        match self {
            Self::Away { .. } | Self::Lost { late: false, .. } => Code::Unavailable,
            Self::Lost { late: true, .. } => Code::DeadlineExceeded,
            Self::Refused { code, .. } => Code::from(*code),
        }
    }

    /// When the same call may be taken, if that is known.
    pub(in crate::gateway) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What a region is to write.
#[derive(Debug)]
pub(in crate::gateway) enum Write {
    Upsert(v1::UpsertRequest),
    Delete(v1::DeleteRequest),
    Patch(v1::PatchRequest),
}

impl Write {
    fn len(&self) -> usize {
        match self {
            Self::Upsert(upsert) => upsert.points.len(),
            Self::Delete(delete) => delete.ids.len(),
            Self::Patch(patch) => patch.points.len(),
        }
    }

    /// Whether it is answered a point at a time.
    fn has_results(&self) -> bool {
        match self {
            Self::Upsert(upsert) => !upsert.conditions.is_empty(),
            Self::Delete(delete) => !delete.conditions.is_empty(),
            Self::Patch(_) => true,
        }
    }
}

/// What it wrote, in order: tokens, or results where each point has its own.
#[derive(Debug)]
pub(in crate::gateway) struct Written {
    pub(in crate::gateway) tokens: Vec<Token>,
    pub(in crate::gateway) results: Vec<v1::WriteResult>,
}

/// The gateways, and connections to them, shared by all threads.
pub(in crate::gateway) struct Regions {
    own: Option<RegionName>,
    gateways: BTreeMap<RegionName, Vec<String>>,
    open: Mutex<HashMap<String, Stub>>,
    /// What drives them.
    runtime: Handle,
}

/// How one gateway failed.
enum Failed {
    /// It has not got the call.
    NotSent(String),
    Ended(RegionError),
}

impl Regions {
    /// No connection yet; they will be driven by the runtime that this is called in.
    pub(in crate::gateway) fn new(config: &ResidencyConfig) -> Self {
        let gateways = config.regions.iter();
        let gateways = gateways.map(|(name, region)| (name.clone(), region.gateways.clone()));
        Self {
            own: config.region.clone(),
            gateways: gateways.collect(),
            open: Mutex::default(),
            runtime: Handle::current(),
        }
    }

    /// Has a region write its part of a call.
    pub(in crate::gateway) async fn write(
        &self,
        region: &RegionName,
        write: Write,
        deadline: Deadline,
    ) -> Result<Written, RegionError> {
        let written = self.ask_any(region, &write, deadline).await;
        let count = |code: Code, points: usize| {
            let points = u64::try_from(points).unwrap_or(u64::MAX);
            let (region, code) = (region.to_string(), grpc::code_name(code));
            metrics::counter!(GATEWAY_REGION_POINTS_TOTAL, "region" => region, "code" => code)
                .increment(points);
        };
        match &written {
            Ok(written) if write.has_results() => {
                for result in &written.results {
                    count(status::of_result(result), 1);
                }
            }
            Ok(_) => count(Code::Ok, write.len()),
            Err(error) => count(error.code(), write.len()),
        }
        written
    }

    /// Asks one gateway after the other until one has got it.
    async fn ask_any(
        &self,
        region: &RegionName,
        write: &Write,
        deadline: Deadline,
    ) -> Result<Written, RegionError> {
        let mut whys = Vec::new();
        for address in self.gateways.get(region).into_iter().flatten() {
            match self.ask(region, address, write, deadline.left()).await {
                Ok(written) => return Ok(written),
                Err(Failed::NotSent(why)) => whys.push(format!("{address}: {why}")),
                Err(Failed::Ended(error)) => return Err(error),
            }
        }
        Err(RegionError::Away {
            region: region.clone(),
            why: whys.join("; "),
        })
    }

    async fn ask(
        &self,
        region: &RegionName,
        address: &str,
        write: &Write,
        left: Duration,
    ) -> Result<Written, Failed> {
        let mut stub = self.stub(address).map_err(Failed::NotSent)?;
        let call = async {
            Ok::<_, Status>(match write {
                Write::Upsert(upsert) => {
                    let asked = self.request(region, upsert.clone(), left);
                    let told = stub.upsert(asked).await?.into_inner();
                    (told.tokens, told.results)
                }
                Write::Delete(delete) => {
                    let asked = self.request(region, delete.clone(), left);
                    let told = stub.delete(asked).await?.into_inner();
                    (told.tokens, told.results)
                }
                Write::Patch(patch) => {
                    let asked = self.request(region, patch.clone(), left);
                    let told = stub.patch(asked).await?.into_inner();
                    (Vec::new(), told.results)
                }
            })
        };
        let lost = |why: String, late| {
            let region = region.clone();
            Failed::Ended(RegionError::Lost { region, why, late })
        };
        match tokio::time::timeout(left, call).await {
            Ok(Ok((tokens, results))) => {
                checked(region, write, tokens, results).map_err(|why| lost(why, false))
            }
            Ok(Err(status)) => Err(failed(region, write, &status)),
            Err(_elapsed) => Err(lost(format!("{address} took over {left:?}"), true)),
        }
    }

    fn request<T>(&self, region: &RegionName, message: T, left: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(left);
        let texts = [
            (RESIDENCY, Some(region.to_string())),
            (FORWARDED_FROM, self.own.as_ref().map(ToString::to_string)),
            (TRACEPARENT, trace::current().map(|trace| trace.to_string())),
        ];
        for (name, text) in texts {
            if let Some(value) = text.and_then(|text| MetadataValue::try_from(text).ok()) {
                request.metadata_mut().insert(name, value);
            }
        }
        request
    }

    fn stub(&self, address: &str) -> Result<Stub, String> {
        let mut open = self
            .open
            .lock()
            .expect("nothing panics while it holds this lock");
        if let Some(stub) = open.get(address) {
            return Ok(stub.clone());
        }
        let endpoint = grpc::endpoint(address, CONNECT);
        let endpoint = endpoint.map_err(|error| chain(&error).to_string())?;
        // Whoever asks first may be a thread that ends before the others' answers are here.
        let _shared = self.runtime.enter();
        let stub = Stub::new(endpoint.connect_lazy())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        open.insert(address.to_owned(), stub.clone());
        Ok(stub)
    }
}

/// An answer of as many parts as were asked for, with the region in every token.
fn checked(
    region: &RegionName,
    write: &Write,
    tokens: Vec<v1::Token>,
    mut results: Vec<v1::WriteResult>,
) -> Result<Written, String> {
    let (found, wanted) = match write.has_results() {
        true => (results.len(), write.len()),
        false => (tokens.len(), write.len()),
    };
    if found != wanted {
        return Err(format!("it answered for {found} of {wanted} points"));
    }
    if write.has_results() {
        for result in &mut results {
            if let Some(Outcome::Token(token)) = &mut result.outcome {
                token.region = region.to_string();
            }
        }
        let tokens = Vec::new();
        return Ok(Written { tokens, results });
    }
    let tokens = tokens.into_iter().map(|token| {
        let read = Token::from_proto(token);
        read.map(|token| Token {
            region: Some(region.clone()),
            ..token
        })
    });
    let tokens: Result<Vec<Token>, _> = tokens.collect();
    Ok(Written {
        tokens: tokens.map_err(|error| chain(&error).to_string())?,
        results,
    })
}

fn failed(region: &RegionName, write: &Write, status: &Status) -> Failed {
    let region = region.clone();
    let mut cause = std::error::Error::source(status);
    let is_said = cause.is_none();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return Failed::NotSent(status.message().to_owned());
        }
        cause = error.source();
    }
    // A change that depends on the point is not made only where that was surely said.
    let is_refusal = match write.has_results() {
        true => REFUSED.contains(&status.code()),
        false => status.code() != Code::Cancelled,
    };
    if is_said && is_refusal {
        let retry = status.get_details_retry_info();
        return Failed::Ended(RegionError::Refused {
            region,
            code: status.code().into(),
            message: status.message().to_owned(),
            retry_after: retry.and_then(|retry| retry.retry_delay),
        });
    }
    Failed::Ended(RegionError::Lost {
        region,
        why: status.message().to_owned(),
        late: [Code::Cancelled, Code::DeadlineExceeded].contains(&status.code()),
    })
}
