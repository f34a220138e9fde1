//! gRPC connections on threads that each serve some of them and nothing else.
//!
//! A runtime of several threads hands a call from the one that read it to another that was woken
//! for it, and the answer back. Where a call takes a hundred microseconds, that is a third of its
//! cost. Here a connection stays with its thread, and so do its calls. A call that keeps others
//! of its thread waiting can see that ([`others_wait`]) and go elsewhere.

use std::{
    cell::Cell,
    future::Future,
    io,
    net::TcpStream as Accepted,
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{self, error::SendError},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};
use tracing::warn;

use crate::{
    grpc::{Connection, Open},
    tasks::{TaskError, Tasks},
};

/// Connections handed to a thread that has not taken them yet.
const HANDED_OVER: usize = 64;
/// How long the listener rests after an error, such as no file being left.
const REST: Duration = Duration::from_millis(100);

/// How long open calls and connections may take to end, once the end is asked for. A peer that hangs answers nothing, and
/// would keep its connection open until it is found out.
pub const DRAIN: Duration = Duration::from_secs(5);

/// The connections of one thread.
pub type Incoming = Pin<Box<dyn Stream<Item = io::Result<Connection<TcpStream>>> + Send>>;

/// Serves a listener's connections on so many threads, until the tasks are cancelled.
///
/// `serve` is called once on each thread with its connections. A new connection goes to the thread
/// that has the fewest; among several to one that has nothing to do at this moment, and then to the one
/// that got none for the longest time. For connections that are opened together are used together, and
/// would meet on one thread while another has as many that nobody uses.
///
/// # Errors
/// The system's own, when it has no more threads.
pub fn on_threads<S, F, E>(
    tasks: &Tasks,
    name: &str,
    listener: TcpListener,
    threads: NonZeroUsize,
    serve: S,
) -> io::Result<()>
where
    S: Fn(Incoming, CancellationToken) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), E>>,
    E: Into<TaskError>,
{
    let mut servers = Vec::new();
    for number in 0..threads.get() {
        servers.push(Server::start(
            tasks,
            format!("{name} {number}"),
            serve.clone(),
        )?);
    }
    let mut accepted_so_far = 0;
    let cancel = tasks.cancel().clone();
    tasks.spawn(format!("{name} listener"), async move {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = accepted.and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                stream.into_std()
            });
            match stream {
                Ok(stream) => {
                    if let Some(server) = servers.iter_mut().min_by_key(|server| server.load()) {
                        accepted_so_far += 1;
                        if server.take(stream, accepted_so_far).await.is_err() {
                            // Its thread has ended, so the tasks are being cancelled.
                            break;
                        }
                    }
                }
                Err(error) => {
                    warn!(%error, "connection is not accepted");
                    tokio::time::sleep(REST).await;
                }
            }
        }
        Ok::<_, std::convert::Infallible>(())
    });
    Ok(())
}

/// Serves until all has ended by itself, or what is left is given up so long after the cancellation.
///
/// # Errors
/// Those of `serving`.
pub async fn drained<E>(
    serving: impl Future<Output = Result<(), E>>,
    cancel: &CancellationToken,
    within: Duration,
) -> Result<(), E> {
    let late = async {
        cancel.cancelled().await;
        tokio::time::sleep(within).await;
    };
    tokio::select! {
        served = serving => served,
        () = late => {
            warn!(?within, "connections are still open after the end was asked for, they are given up");
            Ok(())
        }
    }
}

/// A thread that serves, as the listener sees it.
struct Server {
    sender: mpsc::Sender<Accepted>,
    /// Its connections.
    open: Arc<AtomicUsize>,
    /// Whether it waits for something to do.
    sleeps: Arc<AtomicBool>,
    /// Which of all connections was the last one it got.
    newest: u64,
}

impl Server {
    fn start<S, F, E>(tasks: &Tasks, name: String, serve: S) -> io::Result<Self>
    where
        S: Fn(Incoming, CancellationToken) -> F + Send + 'static,
        F: Future<Output = Result<(), E>>,
        E: Into<TaskError>,
    {
        let (sender, receiver) = mpsc::channel(HANDED_OVER);
        let open = Arc::new(AtomicUsize::new(0));
        let sleeps = Arc::new(AtomicBool::new(false));
        let server = Self {
            sender,
            open: open.clone(),
            sleeps: sleeps.clone(),
            newest: 0,
        };
        let cancel = tasks.cancel().clone();
        tasks.spawn_thread(name, move || {
            let wakes = sleeps.clone();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .on_thread_park(move || sleeps.store(true, Ordering::Relaxed))
                .on_thread_unpark(move || wakes.store(false, Ordering::Relaxed))
                .build()
                .map_err(TaskError::from)?;
            let connections = ReceiverStream::new(receiver).map(move |accepted: Accepted| {
                let stream = TcpStream::from_std(accepted)?;
                Ok(Connection::counted(stream, Open(open.clone())))
            });
            let serving = serve(Box::pin(connections), cancel.clone());
            let serving = drained(serving, &cancel, DRAIN);
            runtime.block_on(serving).map_err(Into::into)
        })?;
        Ok(server)
    }

    /// What a new connection would have to share it with: so many others, whether they keep it busy,
    /// and when the last one came.
    fn load(&self) -> (usize, bool, u64) {
        let is_awake = !self.sleeps.load(Ordering::Relaxed);
        (self.open.load(Ordering::Relaxed), is_awake, self.newest)
    }

    /// Hands it a connection, the so many-th of all.
    async fn take(&mut self, stream: Accepted, number: u64) -> Result<(), SendError<Accepted>> {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.newest = number;
        self.sender.send(stream).await
    }
}

thread_local! {
    /// Calls of this thread's connections that have come in and not ended.
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Whether a call of this thread's connections waits while the one that asks runs.
pub fn others_wait() -> bool {
    CALLS.get() > 1
}

/// Counts the calls of a thread, as [`others_wait`] needs it.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountCalls;

impl<S> Layer<S> for CountCalls {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting(inner)
    }
}

/// A service whose calls are counted.
#[derive(Clone, Debug)]
pub struct Counting<S>(S);

impl<S, R> Service<R> for Counting<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Counted<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // Before the call first runs: it is one that others may keep waiting.
        let call = Call::begin();
        Counted {
            inner: Box::pin(self.0.call(request)),
            _call: call,
        }
    }
}

/// A call that is counted until it ends.
pub struct Counted<F> {
    inner: Pin<Box<F>>,
    _call: Call,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.inner.as_mut().poll(context)
    }
}

struct Call;

impl Call {
    fn begin() -> Self {
        CALLS.set(CALLS.get() + 1);
        Self
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        CALLS.set(CALLS.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        collections::HashMap,
        convert::Infallible,
        future::{Ready, pending, ready},
        num::NonZeroUsize,
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, AtomicUsize, Ordering},
        },
        task::{Context, Poll, Waker},
        thread::ThreadId,
        time::Duration,
    };

    use tokio::{
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };
    use tokio_stream::StreamExt as _;
    use tokio_util::sync::CancellationToken;
    use tower::{Layer as _, Service};

    use super::{CountCalls, DRAIN, Incoming, Server, drained, on_threads, others_wait};
    use crate::{tasks::Tasks, wait::eventually};

    #[tokio::test]
    async fn what_does_not_end_is_given_up_once_the_end_was_asked_for() {
        let cancel = CancellationToken::new();
        let hangs = pending::<Result<(), Infallible>>();
        let mut hangs = std::pin::pin!(drained(hangs, &cancel, Duration::ZERO));
        let mut context = Context::from_waker(Waker::noop());
        assert!(hangs.as_mut().poll(&mut context).is_pending());
        cancel.cancel();
        assert_eq!(hangs.await, Ok(()));
        let fails = drained(ready(Err("it cannot")), &cancel, DRAIN);
        assert_eq!(fails.await, Err("it cannot"));
    }

    /// Says at once what its caller gave.
    #[derive(Clone)]
    struct Echo;

    impl Service<u32> for Echo {
        type Response = u32;
        type Error = Infallible;
        type Future = Ready<Result<u32, Infallible>>;

        fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: u32) -> Self::Future {
            ready(Ok(request))
        }
    }

    #[tokio::test]
    async fn a_call_knows_of_others_from_their_coming_in_to_their_end() {
        let mut echo = CountCalls.layer(Echo);
        let first = echo.call(1);
        assert!(!others_wait());
        let second = echo.call(2);
        assert!(others_wait());
        assert_eq!(first.await, Ok(1));
        assert!(!others_wait());
        drop(second);
        assert!(!others_wait());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn connections_are_spread_and_end_with_the_tasks() {
        let cancel = CancellationToken::new();
        let tasks = Tasks::new(cancel.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let held: Arc<Mutex<HashMap<ThreadId, usize>>> = Arc::default();
        let seen = held.clone();
        let serve = move |mut connections: Incoming, cancel: CancellationToken| {
            let seen = seen.clone();
            async move {
                let all = async {
                    let mut open = Vec::new();
                    while let Some(connection) = connections.next().await {
                        open.push(connection.unwrap());
                        *seen
                            .lock()
                            .unwrap()
                            .entry(std::thread::current().id())
                            .or_default() += 1;
                    }
                    pending::<()>().await;
                };
                tokio::select! {
                    () = cancel.cancelled() => Ok::<_, Infallible>(()),
                    () = all => Ok(()),
                }
            }
        };
        on_threads(
            &tasks,
            "test",
            listener,
            NonZeroUsize::new(3).unwrap(),
            serve,
        )
        .unwrap();
        let mut clients = Vec::new();
        for opened in 1..=6 {
            clients.push(TcpStream::connect(address).await.unwrap());
            // One after the other, so that each sees how many the ones before it have made.
            eventually(Duration::from_secs(60), "a connection to be taken", || {
                (held.lock().unwrap().values().sum::<usize>() == opened).then_some(())
            });
        }
        let spread: Vec<usize> = held.lock().unwrap().values().copied().collect();
        assert_eq!(spread, [2, 2, 2]);
        cancel.cancel();
        tasks.finish(Duration::from_secs(60)).await.unwrap();
    }

    #[test]
    fn a_connection_goes_to_where_the_fewest_are_then_to_who_sleeps_then_to_who_got_none_for_longest()
     {
        let server = |(open, sleeps, newest)| Server {
            sender: mpsc::channel(1).0,
            open: Arc::new(AtomicUsize::new(open)),
            sleeps: Arc::new(AtomicBool::new(sleeps)),
            newest,
        };
        let chosen = |servers: [(usize, bool, u64); 3]| {
            let servers = servers.map(server);
            let least = servers.iter().map(Server::load).enumerate();
            least.min_by_key(|(_, load)| *load).map(|(at, _)| at)
        };
        assert_eq!(
            chosen([(1, false, 1), (1, true, 3), (1, false, 2)]),
            Some(1)
        );
        assert_eq!(chosen([(2, true, 1), (1, false, 3), (2, true, 2)]), Some(1));
        assert_eq!(chosen([(1, true, 3), (1, true, 2), (1, true, 4)]), Some(1));
    }

    #[test]
    fn a_thread_is_known_to_sleep_or_not() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let tasks = Tasks::new(CancellationToken::new());
        let (begin, begun) = std::sync::mpsc::sync_channel(1);
        let begun = Arc::new(Mutex::new(begun));
        let serve = move |mut connections: Incoming, cancel: CancellationToken| {
            let begun = begun.clone();
            async move {
                let busy = async {
                    while let Some(connection) = connections.next().await {
                        // As long as the test says, without giving way to anything.
                        begun.lock().unwrap().recv().unwrap();
                        drop(connection);
                    }
                };
                tokio::select! {
                    () = cancel.cancelled() => Ok::<_, Infallible>(()),
                    () = busy => Ok(()),
                }
            }
        };
        let mut server = Server::start(&tasks, "test".to_owned(), serve).unwrap();
        let sleeps = server.sleeps.clone();
        let comes_to = |wanted| {
            eventually(
                Duration::from_secs(60),
                "the thread to sleep or not",
                || (sleeps.load(Ordering::Relaxed) == wanted).then_some(()),
            );
        };
        comes_to(true);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        runtime.block_on(server.take(stream, 7)).unwrap();
        comes_to(false);
        assert_eq!(server.load(), (1, true, 7));
        begin.send(()).unwrap();
        comes_to(true);
        assert_eq!(server.load(), (0, false, 7));
        tasks.cancel().cancel();
        runtime
            .block_on(tasks.finish(Duration::from_secs(60)))
            .unwrap();
    }
}
