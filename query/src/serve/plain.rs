//! Plain gRPC calls of one service go straight to it.
//!
//! A browser's calls need headers looked at and bodies translated, and the services beside need a router. A search by a
//! plain client over HTTP/2 needs none of it, and what stands in its way is a good part of what it costs.

use std::task::{Context, Poll};

use futures::future::Either;
use tonic::{
    body::Body,
    codegen::http::{
        HeaderMap, Request, Version,
        header::{CONTENT_TYPE, ORIGIN},
    },
    server::NamedService,
};
use tower::{Layer, Service};

/// What plain gRPC has as its content type, with or without a format behind it.
const GRPC: &str = "application/grpc";

/// Puts a service in front of all others, for plain calls to it.
#[derive(Clone, Debug)]
pub(super) struct PlainCalls<S>(pub(super) S);

/// A service in front of others.
#[derive(Clone, Debug)]
pub(super) struct InFront<S, R> {
    service: S,
    others: R,
}

impl<S: Clone, R> Layer<R> for PlainCalls<S> {
    type Service = InFront<S, R>;

    fn layer(&self, others: R) -> InFront<S, R> {
        InFront {
            service: self.0.clone(),
            others,
        }
    }
}

impl<S, R> Service<Request<Body>> for InFront<S, R>
where
    S: Service<Request<Body>> + NamedService,
    R: Service<Request<Body>, Response = S::Response, Error = S::Error>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, R::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.service.poll_ready(context) {
            Poll::Ready(Ok(())) => self.others.poll_ready(context),
            not_ready => not_ready,
        }
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_plain(&request, S::NAME) {
            Either::Left(self.service.call(request))
        } else {
            Either::Right(self.others.call(request))
        }
    }
}

/// Whether it is a call to a service that no browser made.
fn is_plain(request: &Request<Body>, service: &str) -> bool {
    let path = request.uri().path().strip_prefix('/');
    let method = path.and_then(|path| path.strip_prefix(service));
    method.is_some_and(|method| method.starts_with('/'))
        && request.version() == Version::HTTP_2
        && is_grpc(request.headers())
        && !request.headers().contains_key(ORIGIN)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    let format = kind.and_then(|kind| kind.strip_prefix(GRPC.as_bytes()));
    matches!(format, Some([] | [b'+' | b';', ..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        convert::Infallible,
        future::{Ready, ready},
        task::{Context, Poll},
    };

    use futures::executor::block_on;
    use tonic::{
        body::Body,
        codegen::http::{Request, Version},
        server::NamedService,
    };
    use tower::{Layer as _, Service};

    use super::PlainCalls;

    const PATH: &str = "/shoal.v1.Search/Count";

    /// Answers with its name.
    #[derive(Clone)]
    struct Named(&'static str);

    impl NamedService for Named {
        const NAME: &'static str = "shoal.v1.Search";
    }

    impl Service<Request<Body>> for Named {
        type Response = &'static str;
        type Error = Infallible;
        type Future = Ready<Result<&'static str, Infallible>>;

        fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _request: Request<Body>) -> Self::Future {
            ready(Ok(self.0))
        }
    }

    fn who_answers(version: Version, path: &str, headers: &[(&'static str, &str)]) -> &'static str {
        let mut request = Request::builder().version(version).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut services = PlainCalls(Named("service")).layer(Named("others"));
        block_on(services.call(request.body(Body::empty()).unwrap())).unwrap()
    }

    #[test]
    fn only_a_plain_call_of_the_service_goes_straight_to_it() {
        let answers = |path, kind| who_answers(Version::HTTP_2, path, &[("content-type", kind)]);
        assert_eq!(answers(PATH, "application/grpc"), "service");
        assert_eq!(answers(PATH, "application/grpc+proto"), "service");
        assert_eq!(answers(PATH, "application/grpc;x=y"), "service");
        assert_eq!(answers(PATH, "application/grpc-web"), "others");
        assert_eq!(answers(PATH, "application/grpc-web+proto"), "others");
        assert_eq!(answers(PATH, "application/json"), "others");
        let grpc = "application/grpc";
        assert_eq!(answers("/shoal.v1.Searches/Count", grpc), "others");
        assert_eq!(answers("/shoal.v1.Collections/List", grpc), "others");
        assert_eq!(answers("/", grpc), "others");
        let kind = ("content-type", grpc);
        assert_eq!(who_answers(Version::HTTP_2, PATH, &[]), "others");
        assert_eq!(who_answers(Version::HTTP_11, PATH, &[kind]), "others");
        let origin = ("origin", "https://app.example.com");
        assert_eq!(
            who_answers(Version::HTTP_2, PATH, &[kind, origin]),
            "others"
        );
    }
}
