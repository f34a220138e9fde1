//! gRPC between roles and their callers: what every server and every connection has in common.
//!
//! A connection carries up to [`MAX_STREAMS`] calls at a time, in either direction of the
//! fleet. Both sides ask for a sign of life, so that a peer that is gone without a word is noticed
//! while nothing is asked, and what waits for it ends.
//!
//! A [`Connection`] sends a small answer in one piece. An answer is a head, a message and a tail. Over a connection that takes several buffers at a
//! time, HTTP/2's encoder sends every message of 256 bytes and more before it encodes the tail,
//! which wakes the caller twice. Over one that does not, messages below a kilobyte are copied and
//! go out together with both. So [`Connection`] says that it does not, and gathers what is
//! written until it is flushed, so that larger messages do not take more writes than before.

mod code;
mod link;

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};
use tonic::transport::{Endpoint, Error, Server, server::Connected};

pub use code::{code_name, http_status};
pub use link::{Answer, Link, LinkError};

/// Calls of one connection at a time.
pub const MAX_STREAMS: u32 = 1000;
/// How often a server asks an idle caller for a sign of life, and how long that may take.
const SERVER_PING: Ping = Ping {
    every: Duration::from_secs(20),
    timeout: Duration::from_secs(20),
};
/// The same of a role that asks another one: sooner, since its own callers wait.
const CLIENT_PING: Ping = Ping {
    every: Duration::from_secs(10),
    timeout: Duration::from_secs(5),
};
/// HTTP/2 flow control of one message and of a connection, bytes: a batch of a thousand vectors,
/// and a usual answer, are in flight as a whole, without waiting for a window update.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// What is gathered at most before it is sent, bytes a connection; longer pieces go out uncopied.
const GATHERED: usize = 16 << 10;

/// A connection that sends small answers in one piece.
#[derive(Debug)]
pub struct Connection<I> {
    io: BufWriter<I>,
    _open: Option<Open>,
}

/// One of a thread's connections, counted while it is open.
#[derive(Debug)]
pub(crate) struct Open(pub(crate) Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Signs of life over HTTP/2.
#[derive(Clone, Copy, Debug)]
struct Ping {
    every: Duration,
    timeout: Duration,
}

/// A server before its services are added.
pub fn server() -> Server {
    server_with(SERVER_PING)
}

fn server_with(ping: Ping) -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(ping.every))
        .http2_keepalive_timeout(Some(ping.timeout))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// Another role, before it is connected to.
///
/// # Errors
/// If the address does not read.
pub fn endpoint(address: &str, connect_timeout: Duration) -> Result<Endpoint, Error> {
    endpoint_with(address, connect_timeout, CLIENT_PING)
}

fn endpoint_with(address: &str, connect_timeout: Duration, ping: Ping) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(ping.every)
        .keep_alive_timeout(ping.timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    Ok(endpoint)
}

impl<I: AsyncWrite> Connection<I> {
    fn new(io: I) -> Self {
        Self {
            io: BufWriter::with_capacity(GATHERED, io),
            _open: None,
        }
    }

    /// One that was counted when it was accepted.
    pub(crate) fn counted(io: I, open: Open) -> Self {
        Self {
            _open: Some(open),
            ..Self::new(io)
        }
    }
}

impl<I: Connected> Connected for Connection<I>
where
    I: AsyncWrite,
{
    type ConnectInfo = I::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.get_ref().connect_info()
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    /// See the file's text.
    fn is_write_vectored(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        future::poll_fn,
        io,
        pin::Pin,
        task::{Context, Poll},
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        time::timeout,
    };
    use tonic::{
        body::Body, codegen::http::Request, service::Routes, transport::server::TcpIncoming,
    };
    use tower::Service as _;

    use super::{Connection, GATHERED, Ping, endpoint_with, server_with};

    const SOON: Ping = Ping {
        every: Duration::from_millis(50),
        timeout: Duration::from_millis(50),
    };
    const PATIENCE: Duration = Duration::from_secs(60);
    /// How a connection begins: the preface, and settings that change nothing.
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    #[tokio::test]
    async fn a_caller_without_a_sign_of_life_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = server_with(SOON).add_routes(Routes::default());
        let serving = server.serve_with_incoming(TcpIncoming::from(listener));
        let silent = async {
            let mut caller = TcpStream::connect(address).await.unwrap();
            caller.write_all(HELLO).await.unwrap();
            let mut said = Vec::new();
            // Ends when the server does.
            let ended = timeout(PATIENCE, caller.read_to_end(&mut said)).await;
            assert!(ended.is_ok(), "it is still connected");
            assert!(!said.is_empty(), "it was never greeted");
        };
        tokio::select! {
            _ = serving => panic!("the server ended"),
            () = silent => {}
        }
    }

    #[tokio::test]
    async fn a_call_to_a_role_without_a_sign_of_life_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let endpoint = endpoint_with(&address, PATIENCE, SOON).unwrap();
        let silent = async {
            let mut open = Vec::new();
            while let Ok((caller, _)) = listener.accept().await {
                open.push(caller);
            }
        };
        let asking = async {
            let mut channel = endpoint.connect_lazy();
            poll_fn(|context| channel.poll_ready(context))
                .await
                .unwrap();
            let answer = timeout(PATIENCE, channel.call(Request::new(Body::empty()))).await;
            assert!(answer.expect("it is given up").is_err());
        };
        tokio::select! {
            () = silent => panic!("nobody listens"),
            () = asking => {}
        }
    }

    /// Keeps what each write brings.
    #[derive(Default)]
    struct Written(Vec<Vec<u8>>);

    impl AsyncWrite for Written {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.push(bytes.to_owned());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_written_before_a_flush_goes_out_in_one_piece() {
        let mut connection = Connection::new(Written::default());
        assert!(!connection.is_write_vectored());
        connection.write_all(b"head ").await.unwrap();
        connection.write_all(b"body").await.unwrap();
        assert!(connection.io.get_ref().0.is_empty());
        connection.flush().await.unwrap();
        connection.write_all(b"tail").await.unwrap();
        connection.shutdown().await.unwrap();
        assert_eq!(connection.io.get_ref().0, [&b"head body"[..], b"tail"]);
    }

    #[tokio::test]
    async fn a_long_piece_is_sent_as_it_is() {
        let mut connection = Connection::new(Written::default());
        let long = vec![7; GATHERED * 3];
        connection.write_all(b"head").await.unwrap();
        connection.write_all(&long).await.unwrap();
        connection.flush().await.unwrap();
        let written = &connection.io.get_ref().0;
        assert_eq!(*written, [b"head".to_vec(), long]);
    }
}
