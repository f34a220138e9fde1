//! A connection to another role, for calls that are many and small.
//!
//! tonic's own channel puts a queue, a task and two timers between a call and its connection. For
//! a search they are a good part of what it costs whoever asks. Through a [`Link`] the call itself
//! puts its frames into what HTTP/2 sends next, and takes its answer from what was received: all
//! that is left beside it is the task that reads and writes the socket.
//!
//! It is for calls with one message each way. It goes over one connection, which is opened when it
//! is first needed and again when it broke, by the runtime of the call that needed it. What waits
//! for it meanwhile shares the attempt, and its failure. A call that is dropped is reset, so its
//! server can stop.

use std::{
    future::{self, Future},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{PingPong, RecvStream, client::SendRequest};
use http::{Request, Response, Uri, uri::InvalidUri};
use http_body::{Body as _, Frame};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time,
};
use tonic::{Status, body::Body};
use tower::Service;
use tracing::{debug, info};

use super::{CLIENT_PING, CONNECTION_WINDOW, MAX_STREAMS, Ping, STREAM_WINDOW};

/// Calls of a connection until its role has said how many it takes: as many as any does.
const STREAMS_UNTOLD: usize = 100;
/// Most bytes of the headers of one answer.
const HEADERS: u32 = 16 << 10;

/// What one attempt to connect came to; `None` while it is under way.
type Attempt = watch::Receiver<Option<Result<SendRequest<Bytes>, Arc<io::Error>>>>;

/// A role at an address, and the connection to it.
#[derive(Clone, Debug)]
pub struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    origin: Uri,
    connect_timeout: Duration,
    ping: Ping,
    newest: Mutex<Option<Attempt>>,
    /// As many calls as a role takes at a time over one connection; the others wait here, where one that is
    /// dropped leaves nothing behind.
    places: Arc<Semaphore>,
}

/// Why a call has no answer. Whoever calls knows the address.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no connection, so nothing was sent.
    #[error("cannot connect")]
    Connect {
        /// The system's own.
        #[source]
        source: Arc<io::Error>,
    },
    /// The connection, or the call, ended before the answer did.
    #[error("connection broke")]
    Broken {
        /// The protocol's own.
        #[from]
        source: h2::Error,
    },
    /// The call's own message could not be encoded.
    #[error("request could not be encoded")]
    Request {
        /// Why not.
        #[source]
        source: Status,
    },
}

impl Link {
    /// The role at an address, `host:port`; nothing is connected yet.
    ///
    /// # Errors
    /// If the address does not read.
    pub fn to(address: &str, connect_timeout: Duration) -> Result<Self, InvalidUri> {
        Self::with_ping(address, connect_timeout, CLIENT_PING)
    }

    fn with_ping(address: &str, connect_timeout: Duration, ping: Ping) -> Result<Self, InvalidUri> {
        let origin = Uri::try_from(format!("http://{address}"))?;
        Ok(Self(Arc::new(Shared {
            origin,
            connect_timeout,
            ping,
            newest: Mutex::default(),
            places: Arc::new(Semaphore::new(
                usize::try_from(MAX_STREAMS).unwrap_or(usize::MAX),
            )),
        })))
    }

    /// What the paths of calls are put behind.
    pub fn origin(&self) -> &Uri {
        &self.0.origin
    }
}

impl Shared {
    fn address(&self) -> &str {
        self.origin
            .authority()
            .map_or("", |address| address.as_str())
    }

    fn newest(&self) -> MutexGuard<'_, Option<Attempt>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest attempt to connect, or one that begins now.
    fn attempt(self: &Arc<Self>) -> Attempt {
        let mut newest = self.newest();
        newest.get_or_insert_with(|| self.begin()).clone()
    }

    /// An attempt that goes on when whoever needs it is gone: a call has less time than a
    /// connection may take.
    #[expect(
        clippy::disallowed_methods,
        reason = "ends with its connection, and a failure is its callers'"
    )]
    fn begin(self: &Arc<Self>) -> Attempt {
        let (told, attempt) = watch::channel(None);
        let (address, ping) = (self.address().to_owned(), self.ping);
        let (timeout, shared) = (self.connect_timeout, Arc::downgrade(self));
        tokio::spawn(async move {
            match connect(&address, timeout).await {
                Ok((sender, connection, heard)) => {
                    told.send_replace(Some(Ok(sender)));
                    // Whoever has the other end has a sender: `told` would keep the connection
                    // open for ever.
                    drop(told);
                    drive(connection, &heard, ping, &address).await;
                }
                Err(error) => {
                    told.send_replace(Some(Err(Arc::new(error))));
                    // For those who wait: whoever comes later begins anew.
                    if let Some(shared) = shared.upgrade() {
                        shared.forget(&told.subscribe());
                    }
                }
            }
        });
        attempt
    }

    /// Forgets an attempt whose connection is no more, or never was.
    fn forget(&self, attempt: &Attempt) {
        let mut newest = self.newest();
        if newest.as_ref().is_some_and(|one| one.same_channel(attempt)) {
            *newest = None;
        }
    }

    /// A connection that can be sent to.
    async fn sender(self: &Arc<Self>) -> Result<SendRequest<Bytes>, LinkError> {
        let mut is_second = false;
        loop {
            let mut attempt = self.attempt();
            let outcome = match attempt.wait_for(Option::is_some).await {
                Ok(told) => told.clone(),
                Err(_ended) => None,
            };
            let error = match outcome {
                Some(Ok(sender)) => match sender.ready().await {
                    Ok(sender) => return Ok(sender),
                    Err(error) => error.into(),
                },
                Some(Err(source)) => return Err(LinkError::Connect { source }),
                // The runtime that connected is gone.
                None => LinkError::Connect {
                    source: Arc::new(io::ErrorKind::NotConnected.into()),
                },
            };
            self.forget(&attempt);
            // Nothing was sent yet. It is let go of when idle, and when its role ends.
            if is_second {
                return Err(error);
            }
            is_second = true;
        }
    }

    async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Answer>, LinkError> {
        // Nobody closes it.
        let place = self.places.clone().acquire_owned().await.ok();
        let mut sender = self.sender().await?;
        let (head, mut body) = request.into_parts();
        let mut message = Vec::new();
        let mut frames = pin!(&mut body);
        while let Some(frame) = future::poll_fn(|context| frames.as_mut().poll_frame(context)).await
        {
            let frame = frame.map_err(|source| LinkError::Request { source })?;
            message.extend(frame.into_data().ok());
        }
        let request = Request::from_parts(head, ());
        let (answer, mut stream) = sender.send_request(request, false)?;
        // The window is left to HTTP/2: what is beyond it waits there, and is in memory anyway.
        let last = message.pop().unwrap_or_default();
        for part in message {
            stream.send_data(part, false)?;
        }
        stream.send_data(last, true)?;
        let answer = answer.await?;
        Ok(answer.map(|stream| Answer {
            stream,
            is_read: false,
            _place: place,
        }))
    }
}

type Connection = h2::client::Connection<Heard, Bytes>;

/// Tries the addresses that a name has, one after the other, each for its part of the time.
async fn connect(
    address: &str,
    patience: Duration,
) -> io::Result<(SendRequest<Bytes>, Connection, Arc<AtomicBool>)> {
    let found = time::timeout(patience, lookup_host(address)).await??;
    let found: Vec<SocketAddr> = found.collect();
    let each = patience / u32::try_from(found.len().max(1)).unwrap_or(u32::MAX);
    let mut outcome = Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
    for one in found {
        outcome = match time::timeout(each, TcpStream::connect(one)).await {
            Ok(connected) => connected,
            Err(late) => Err(late.into()),
        };
        if outcome.is_ok() {
            break;
        }
    }
    let stream = outcome?;
    stream.set_nodelay(true)?;
    let heard = Arc::new(AtomicBool::new(false));
    let stream = Heard {
        stream,
        heard: heard.clone(),
    };
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(STREAMS_UNTOLD)
        .max_header_list_size(HEADERS)
        .handshake(stream)
        .await
        .map_err(io::Error::other)?;
    Ok((sender, connection, heard))
}

/// Reads and writes until the connection ends, or gives no sign of life.
async fn drive(mut connection: Connection, heard: &AtomicBool, ping: Ping, address: &str) {
    let pings = connection.ping_pong();
    tokio::select! {
        biased;
        ended = connection => match ended {
            Ok(()) => debug!(address, "connection closed"),
            Err(error) => debug!(address, error = %error, "connection broke"),
        },
        // What waits for an answer over it is told so when it is dropped.
        () = falls_silent(pings, heard, ping) => {
            info!(address, "role gives no sign of life, its connection is closed");
        }
    }
}

/// Ends when nothing at all was read for as long as an answer to a ping may take.
async fn falls_silent(pings: Option<PingPong>, heard: &AtomicBool, ping: Ping) {
    let Some(mut pings) = pings else {
        return future::pending().await;
    };
    loop {
        time::sleep(ping.every).await;
        if heard.swap(false, Ordering::Relaxed) {
            continue;
        }
        let mut pong = pin!(pings.ping(h2::Ping::opaque()));
        loop {
            match time::timeout(ping.timeout, &mut pong).await {
                Ok(Ok(_)) => break,
                // The connection ends by itself.
                Ok(Err(_)) => return future::pending().await,
                // A long answer goes before it.
                Err(_late) if heard.swap(false, Ordering::Relaxed) => {}
                Err(_late) => return,
            }
        }
    }
}

/// A socket that notes that something was read from it.
#[derive(Debug)]
struct Heard {
    stream: TcpStream,
    heard: Arc<AtomicBool>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Answer>;
    type Error = LinkError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, LinkError>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.clone().call(request))
    }
}

/// An answer as it comes in.
#[derive(Debug)]
pub struct Answer {
    stream: RecvStream,
    /// All but the tail.
    is_read: bool,
    _place: Option<OwnedSemaphorePermit>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = LinkError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        if !self.is_read {
            match ready!(self.stream.poll_data(context)) {
                Some(data) => {
                    let data = data.and_then(|data| {
                        self.stream.flow_control().release_capacity(data.len())?;
                        Ok(Frame::data(data))
                    });
                    return Poll::Ready(Some(data.map_err(LinkError::from)));
                }
                None => self.is_read = true,
            }
        }
        let tail = ready!(self.stream.poll_trailers(context));
        let tail = tail.map_err(LinkError::from);
        Poll::Ready(tail.transpose().map(|tail| tail.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
