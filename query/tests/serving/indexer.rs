//! An indexer on the loopback: a real gRPC server over points in memory, which can misbehave.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use futures::future::BoxFuture;
use shoal_query::client::memory::Node;
use shoal_runtime::{grpc, http::bind, tasks::Tasks};
use shoal_schemas::v1;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, transport::server::TcpIncoming};

/// What the server does with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// It answers.
    #[default]
    Answers,
    /// It never answers.
    Hangs,
    /// It answers once it is told to let go.
    Holds,
    /// It answers every call with this code.
    Fails(Code),
    /// It answers every shard with this code.
    FailsShards(i32),
    /// It answers, and says that its shards are so many seconds behind.
    Behind(u32),
}

/// What one call brought.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub traceparent: Option<String>,
    pub grpc_timeout: Option<String>,
    pub shards: Vec<v1::ShardAsk>,
    /// Where its connection comes from.
    pub peer: Option<SocketAddr>,
}

/// The server's inside. Cloning shares it.
#[derive(Clone)]
pub struct Indexer {
    pub node: Arc<Node>,
    pub name: String,
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    let_go: Arc<watch::Sender<bool>>,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    seen: Vec<Seen>,
    searched: usize,
    before_answer: Option<BoxFuture<'static, ()>>,
}

impl Indexer {
    pub async fn start(name: &str, tasks: &Tasks) -> Self {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let indexer = Self {
            node: Node::new(name),
            name: name.to_owned(),
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
            let_go: Arc::default(),
        };
        let router =
            grpc::server().add_service(v1::shard_server::ShardServer::new(indexer.clone()));
        let cancel = tasks.cancel().clone();
        tasks.spawn(format!("indexer {name}"), async move {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            // Not gracefully: a call that hangs would keep it.
            tokio::select! {
                () = cancel.cancelled() => Ok(()),
                ended = router.serve_with_incoming(incoming) => ended,
            }
        });
        indexer
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.state.lock().unwrap().behaviour = behaviour;
    }

    /// Answers what it holds.
    pub fn let_go(&self) {
        self.let_go.send_replace(true);
    }

    /// Does this once, before the next call is answered.
    pub fn before_answer(&self, doing: BoxFuture<'static, ()>) {
        self.state.lock().unwrap().before_answer = Some(doing);
    }

    /// Every call so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// How many shards have searched so far, those left out that said that nothing has changed.
    pub fn searched(&self) -> usize {
        self.state.lock().unwrap().searched
    }

    async fn meet<T>(
        &self,
        request: &Request<T>,
        shards: Vec<v1::ShardAsk>,
    ) -> Result<Option<i32>, Status> {
        let text = |name: &str| {
            let value = request.metadata().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let (behaviour, before_answer) = {
            let mut state = self.state.lock().unwrap();
            state.seen.push(Seen {
                traceparent: text("traceparent"),
                grpc_timeout: text("grpc-timeout"),
                shards,
                peer: request.remote_addr(),
            });
            (state.behaviour, state.before_answer.take())
        };
        if let Some(doing) = before_answer {
            doing.await;
        }
        match behaviour {
            Behaviour::Answers | Behaviour::Behind(_) => Ok(None),
            Behaviour::Hangs => std::future::pending().await,
            Behaviour::Holds => {
                let mut let_go = self.let_go.subscribe();
                let_go.wait_for(|is_told| *is_told).await.unwrap();
                Ok(None)
            }
            Behaviour::Fails(code) => Err(Status::new(code, "planted")),
            Behaviour::FailsShards(code) => Ok(Some(code)),
        }
    }
}

impl Indexer {
    fn fall_behind(&self, coverage: &mut Option<v1::ShardCoverage>) {
        if let Behaviour::Behind(seconds) = self.state.lock().unwrap().behaviour
            && let Some(coverage) = coverage
        {
            coverage.lag_seconds = f64::from(seconds);
        }
    }
}

fn fail(coverage: &mut Option<v1::ShardCoverage>, into: &mut i32, code: i32) {
    *into = code;
    if let Some(coverage) = coverage {
        coverage.answered = false;
        coverage.error = "planted".into();
    }
}

#[tonic::async_trait]
impl v1::shard_server::Shard for Indexer {
    async fn search_shards(
        &self,
        request: Request<v1::SearchShardsRequest>,
    ) -> Result<Response<v1::SearchShardsResponse>, Status> {
        let failing = self
            .meet(&request, request.get_ref().shards.clone())
            .await?;
        let mut answer = self.node.search(request.get_ref());
        let searched = answer.shards.iter().filter(|shard| !shard.unchanged);
        self.state.lock().unwrap().searched += searched.count();
        for shard in &mut answer.shards {
            self.fall_behind(&mut shard.coverage);
            if let Some(code) = failing {
                fail(&mut shard.coverage, &mut shard.code, code);
                shard.results.clear();
            }
        }
        Ok(Response::new(answer))
    }

    async fn get_points(
        &self,
        request: Request<v1::GetPointsRequest>,
    ) -> Result<Response<v1::GetPointsResponse>, Status> {
        let asks = request
            .get_ref()
            .shards
            .iter()
            .filter_map(|ids| ids.ask.clone());
        let failing = self.meet(&request, asks.collect()).await?;
        let mut answer = self.node.get(request.get_ref());
        for shard in &mut answer.shards {
            if let Some(code) = failing {
                fail(&mut shard.coverage, &mut shard.code, code);
                shard.points.clear();
            }
        }
        Ok(Response::new(answer))
    }

    async fn count_points(
        &self,
        request: Request<v1::CountPointsRequest>,
    ) -> Result<Response<v1::CountPointsResponse>, Status> {
        let failing = self
            .meet(&request, request.get_ref().shards.clone())
            .await?;
        let mut answer = self.node.count(request.get_ref());
        for shard in &mut answer.shards {
            if let Some(code) = failing {
                fail(&mut shard.coverage, &mut shard.code, code);
            }
        }
        Ok(Response::new(answer))
    }

    async fn shard_scroll(
        &self,
        request: Request<v1::ShardScrollRequest>,
    ) -> Result<Response<v1::ShardScrollResponse>, Status> {
        let failing = self
            .meet(&request, request.get_ref().shards.clone())
            .await?;
        let mut answer = self.node.scroll(request.get_ref());
        for shard in &mut answer.shards {
            if let Some(code) = failing {
                fail(&mut shard.coverage, &mut shard.code, code);
                shard.points.clear();
            }
        }
        Ok(Response::new(answer))
    }

    async fn shard_status(
        &self,
        request: Request<v1::ShardStatusRequest>,
    ) -> Result<Response<v1::ShardStatusResponse>, Status> {
        let failing = self
            .meet(&request, request.get_ref().shards.clone())
            .await?;
        let mut answer = self.node.status(request.get_ref());
        for shard in &mut answer.shards {
            if let Some(code) = failing {
                fail(&mut shard.coverage, &mut shard.code, code);
            }
        }
        Ok(Response::new(answer))
    }

    async fn resolve(
        &self,
        _: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        Err(Status::unimplemented("a query node changes nothing"))
    }
}
