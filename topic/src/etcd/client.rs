//! The calls: everything below a prefix, changes since, and writes that a newer one stops.

use std::time::Duration;

use shoal_runtime::ErrorKind;
use shoal_schemas::Offset;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request as Call, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use super::{
    CALL, Config, LeasedClaim, READ_TO_KEY,
    api::{
        Compare, DeleteRangeRequest, KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest,
        LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
        WatchRequest, WatchResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        event::EventType,
        kv_client::KvClient,
        lease_client::LeaseClient,
        request_op::Request,
        watch_client::WatchClient,
        watch_request::RequestUnion,
    },
};

/// Largest answer: all definitions and claims.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// How often a connection is asked for a sign of life; etcd takes more than one in 5 s amiss.
const PING: Duration = Duration::from_secs(10);

/// Why etcd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// An endpoint that is no address.
    #[error("etcd endpoint `{endpoint}` is no address")]
    Endpoint {
        /// As given.
        endpoint: String,
    },
    /// A call.
    #[error("etcd does not answer")]
    Call(#[source] Box<Status>),
    /// A watch that ended.
    #[error("etcd ended the watch: {why}")]
    Watch {
        /// What it says.
        why: String,
    },
    /// The lease is over.
    #[error("etcd's lease is over")]
    Lease,
}

impl EtcdError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Endpoint { .. } => ErrorKind::Caller,
            Self::Call(_) | Self::Watch { .. } | Self::Lease => ErrorKind::Retry,
        }
    }
}

impl From<Status> for EtcdError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseId(i64);

/// A key, without the prefix, and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
}

/// A key that was written, or taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, without the prefix.
    pub key: String,
    /// The value; `None` if it is gone.
    pub value: Option<Vec<u8>>,
}

/// What became of a write that a newer one stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// It was made.
    Done,
    /// Somebody else wrote at the same time; look again.
    Raced,
    /// What stands there is newer.
    Overtaken,
}

/// A connection to an etcd. Cloning shares it.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    prefix: String,
}

impl Client {
    /// A client that connects with its first call.
    ///
    /// # Errors
    /// [`EtcdError::Endpoint`].
    pub fn connect(config: &Config) -> Result<Self, EtcdError> {
        let endpoints = config.endpoints.iter().map(|endpoint| {
            let refused = |_| EtcdError::Endpoint {
                endpoint: endpoint.clone(),
            };
            let endpoint = Endpoint::from_shared(endpoint.clone()).map_err(refused)?;
            Ok(endpoint
                .connect_timeout(CALL)
                .http2_keep_alive_interval(PING)
                .keep_alive_timeout(CALL)
                .keep_alive_while_idle(true))
        });
        let endpoints: Vec<Endpoint> = endpoints.collect::<Result<_, EtcdError>>()?;
        Ok(Self {
            channel: Channel::balance_list(endpoints.into_iter()),
            prefix: config.prefix.clone(),
        })
    }

    /// Everything below the prefix, and the revision at which it stood so.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn all(&self) -> Result<(Vec<Pair>, i64), EtcdError> {
        let asked = RangeRequest {
            key: self.prefix.clone().into_bytes(),
            range_end: self.end(),
        };
        let mut kv = self.kv();
        let answer = within(kv.range(asked)).await?.into_inner();
        let revision = answer.header.map_or(0, |header| header.revision);
        let pairs = answer.kvs.into_iter().filter_map(|pair| {
            let key = self.bare(&pair.key)?;
            let value = pair.value;
            Some(Pair { key, value })
        });
        Ok((pairs.collect(), revision))
    }

    /// Changes below the prefix from a revision on.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn watch(&self, from: i64) -> Result<Watch, EtcdError> {
        let create = WatchCreateRequest {
            key: self.prefix.clone().into_bytes(),
            range_end: self.end(),
            start_revision: from,
        };
        let (asks, asked) = tokio::sync::mpsc::channel(1);
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // The channel has room for one and its other end is held here.
        let _sent = asks.try_send(request);
        let mut client =
            WatchClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let answers = within(client.watch(with_leader(ReceiverStream::new(asked)))).await?;
        Ok(Watch {
            client: self.clone(),
            answers: answers.into_inner(),
            _asks: asks,
        })
    }

    /// A lease of so many seconds.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn grant(&self, seconds: i64) -> Result<LeaseId, EtcdError> {
        let asked = LeaseGrantRequest { ttl: seconds };
        let mut lease = LeaseClient::new(self.channel.clone());
        let granted = within(lease.lease_grant(asked)).await?;
        Ok(LeaseId(granted.into_inner().id))
    }

    /// Begins the lease's time anew.
    ///
    /// # Errors
    /// [`EtcdError::Lease`] if it is over, [`EtcdError::Call`].
    pub async fn keep_alive(&self, LeaseId(id): LeaseId) -> Result<(), EtcdError> {
        let asked = tokio_stream::once(LeaseKeepAliveRequest { id });
        let mut lease = LeaseClient::new(self.channel.clone());
        let mut answers = within(lease.lease_keep_alive(asked)).await?.into_inner();
        let answer = within(answers.message()).await?;
        match answer {
            Some(kept) if kept.ttl > 0 => Ok(()),
            _ => Err(EtcdError::Lease),
        }
    }

    /// Ends a lease and with it what stands under it.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn revoke(&self, LeaseId(id): LeaseId) -> Result<(), EtcdError> {
        let mut lease = LeaseClient::new(self.channel.clone());
        within(lease.lease_revoke(LeaseRevokeRequest { id })).await?;
        Ok(())
    }

    /// Writes a value that does not end with a lease, unless it stands there already.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn put(&self, key: &str, value: &[u8]) -> Result<Fenced, EtcdError> {
        let found = self.find(key).await?;
        if found.as_ref().is_some_and(|found| found.value == value) {
            return Ok(Fenced::Done);
        }
        self.write(key, found, Some((value.to_owned(), None))).await
    }

    /// Writes a definition or takes it away, unless somebody has been at the definitions who had read the
    /// control topic further than `read_to`: what stands there is newer then.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn define(
        &self,
        key: &str,
        value: Option<&[u8]>,
        read_to: Offset,
    ) -> Result<Fenced, EtcdError> {
        let fence = self.find(READ_TO_KEY).await?;
        let there = offset_of(fence.as_ref());
        if there.is_some_and(|there| there > read_to) {
            return Ok(Fenced::Overtaken);
        }
        let found = self.find(key).await?;
        if found.as_ref().map(|found| found.value.as_slice()) == value {
            return Ok(Fenced::Done);
        }
        let compare = vec![
            self.as_found(key, found.as_ref()),
            self.as_found(READ_TO_KEY, fence.as_ref()),
        ];
        let mut success = vec![self.op(key, value.map(<[u8]>::to_vec), None)];
        if there != Some(read_to) {
            let read_to = read_to.to_string().into_bytes();
            success.push(self.op(READ_TO_KEY, Some(read_to), None));
        }
        self.transact(compare, success).await
    }

    /// How far whoever wrote the definitions had read the control topic.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn read_to(&self) -> Result<Option<Offset>, EtcdError> {
        let found = self.find(READ_TO_KEY).await?;
        Ok(offset_of(found.as_ref()))
    }

    /// Sets that back from `there`: the control topic was made anew.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn set_back(&self, there: Offset, read_to: Offset) -> Result<Fenced, EtcdError> {
        let fence = self.find(READ_TO_KEY).await?;
        if offset_of(fence.as_ref()) != Some(there) {
            return Ok(Fenced::Raced);
        }
        let value = read_to.to_string().into_bytes();
        self.write(READ_TO_KEY, fence, Some((value, None))).await
    }

    /// Writes a claim under a lease, unless a newer one stands there.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn claim(
        &self,
        key: &str,
        claim: &LeasedClaim,
        lease: LeaseId,
    ) -> Result<Fenced, EtcdError> {
        let is_newer = |there: Offset| there > claim.epoch;
        self.claim_unless(key, claim, lease, is_newer).await
    }

    /// Writes the claim of another node under a lease, unless it or a newer one stands there: what
    /// that node has written itself stays under its own lease.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn claim_for_another(
        &self,
        key: &str,
        claim: &LeasedClaim,
        lease: LeaseId,
    ) -> Result<Fenced, EtcdError> {
        let is_there = |there: Offset| there >= claim.epoch;
        self.claim_unless(key, claim, lease, is_there).await
    }

    async fn claim_unless(
        &self,
        key: &str,
        claim: &LeasedClaim,
        LeaseId(lease): LeaseId,
        stands: impl Fn(Offset) -> bool,
    ) -> Result<Fenced, EtcdError> {
        let found = self.find(key).await?;
        if epoch_of(found.as_ref()).is_some_and(stands) {
            return Ok(Fenced::Overtaken);
        }
        let value = Some((claim.encode(), Some(lease)));
        self.write(key, found, value).await
    }

    /// Takes a key away, unless a claim newer than `epoch` stands there.
    ///
    /// # Errors
    /// [`EtcdError::Call`].
    pub async fn remove(&self, key: &str, epoch: Option<Offset>) -> Result<Fenced, EtcdError> {
        let Some(found) = self.find(key).await? else {
            return Ok(Fenced::Done);
        };
        if let (Some(there), Some(epoch)) = (epoch_of(Some(&found)), epoch)
            && there > epoch
        {
            return Ok(Fenced::Overtaken);
        }
        self.write(key, Some(found), None).await
    }

    async fn find(&self, key: &str) -> Result<Option<KeyValue>, EtcdError> {
        let asked = RangeRequest {
            key: self.whole(key),
            range_end: Vec::new(),
        };
        let mut kv = self.kv();
        let answer = within(kv.range(asked)).await?.into_inner();
        Ok(answer.kvs.into_iter().next())
    }

    /// Writes or removes a key that still is as it was found.
    async fn write(
        &self,
        key: &str,
        found: Option<KeyValue>,
        value: Option<(Vec<u8>, Option<i64>)>,
    ) -> Result<Fenced, EtcdError> {
        let compare = vec![self.as_found(key, found.as_ref())];
        let (value, lease) = value.map_or((None, None), |(value, lease)| (Some(value), lease));
        self.transact(compare, vec![self.op(key, value, lease)])
            .await
    }

    /// That a key is as it was found.
    fn as_found(&self, key: &str, found: Option<&KeyValue>) -> Compare {
        Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: self.whole(key),
            target_union: Some(TargetUnion::ModRevision(
                found.map_or(0, |found| found.mod_revision),
            )),
        }
    }

    /// Writing a key, or removing it.
    fn op(&self, key: &str, value: Option<Vec<u8>>, lease: Option<i64>) -> RequestOp {
        let key = self.whole(key);
        let request = match value {
            Some(value) => Request::RequestPut(PutRequest {
                key,
                value,
                lease: lease.unwrap_or(0),
            }),
            None => Request::RequestDeleteRange(DeleteRangeRequest { key }),
        };
        RequestOp {
            request: Some(request),
        }
    }

    async fn transact(
        &self,
        compare: Vec<Compare>,
        success: Vec<RequestOp>,
    ) -> Result<Fenced, EtcdError> {
        let mut kv = self.kv();
        let asked = TxnRequest { compare, success };
        let answer = within(kv.txn(asked)).await?.into_inner();
        Ok(if answer.succeeded {
            Fenced::Done
        } else {
            Fenced::Raced
        })
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn whole(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.prefix).into_bytes()
    }

    fn bare(&self, key: &[u8]) -> Option<String> {
        let text = str::from_utf8(key).ok()?;
        text.strip_prefix(&self.prefix).map(str::to_owned)
    }

    /// The first key behind all that begin with the prefix.
    fn end(&self) -> Vec<u8> {
        let mut end = self.prefix.clone().into_bytes();
        // UTF-8 has no byte 0xff, so the last one can always be raised.
        if let Some(last) = end.last_mut() {
            *last = last.saturating_add(1);
        }
        end
    }
}

/// Changes as they come.
pub struct Watch {
    client: Client,
    answers: Streaming<WatchResponse>,
    /// Dropped, it would end the stream.
    _asks: tokio::sync::mpsc::Sender<WatchRequest>,
}

impl Watch {
    /// The next changes, waited for.
    ///
    /// # Errors
    /// [`EtcdError`]; the watch is over then.
    /// # Cancel safety
    /// Cancel safe: what was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<Vec<Change>, EtcdError> {
        loop {
            let ended = |why: &str| EtcdError::Watch {
                why: why.to_owned(),
            };
            let answer = self.answers.message().await?;
            let answer = answer.ok_or_else(|| ended("the stream is over"))?;
            if answer.canceled {
                let why = match answer.compact_revision {
                    0 => answer.cancel_reason,
                    revision => format!("history up to revision {revision} is compacted"),
                };
                return Err(EtcdError::Watch { why });
            }
            let changes = answer.events.into_iter().filter_map(|event| {
                let is_gone = event.r#type() == EventType::Delete;
                let pair = event.kv?;
                let key = self.client.bare(&pair.key)?;
                let value = (!is_gone).then_some(pair.value);
                Some(Change { key, value })
            });
            let changes: Vec<_> = changes.collect();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

/// A call that a member answers only while it knows a leader. One that is cut off from the others would
/// hold a watch open and never say anything.
fn with_leader<T>(message: T) -> Call<T> {
    let mut call = Call::new(message);
    let yes = MetadataValue::from_static("true");
    call.metadata_mut().insert("hasleader", yes);
    call
}

fn offset_of(found: Option<&KeyValue>) -> Option<Offset> {
    let text = str::from_utf8(&found?.value).ok()?;
    Some(Offset(text.parse().ok()?))
}

fn epoch_of(found: Option<&KeyValue>) -> Option<Offset> {
    let claim = LeasedClaim::decode(&found?.value).ok()?;
    Some(claim.epoch)
}

async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, EtcdError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(EtcdError::from(Status::deadline_exceeded(format!(
            "no answer within {CALL:?}"
        )))),
    }
}
