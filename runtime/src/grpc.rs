//! Listening for gRPC: connections that send a small answer in one piece.
//!
//! An answer is a head, a message and a tail. Over a connection that takes several buffers at a
//! time, HTTP/2's encoder sends every message of 256 bytes and more before it encodes the tail,
//! which wakes the caller twice. Over one that does not, messages below a kilobyte are copied and
//! go out together with both. So [`Connection`] says that it does not, and gathers what is
//! written until it is flushed, so that larger messages do not take more writes than before.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::{Connected, TcpIncoming};

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

/// The connections that come in on a listener, without waiting for acknowledgements.
pub fn incoming(
    listener: TcpListener,
) -> impl Stream<Item = io::Result<Connection<TcpStream>>> + Send + Unpin {
    let accepted = TcpIncoming::from(listener).with_nodelay(Some(true));
    accepted.map(|one| one.map(Connection::new))
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
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::{AsyncWrite, AsyncWriteExt as _};

    use super::{Connection, GATHERED};

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
