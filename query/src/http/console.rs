//! The console: one page for a person, in the binary, that asks nothing but this node.
//!
//! It is plain HTML, CSS and JavaScript, served as written. The browser is told to load nothing
//! from elsewhere and to run no script but the page's own, so that a payload cannot become one.

use axum::{
    Router,
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    response::{IntoResponse as _, Response},
    routing::get,
};

const PAGE: &str = include_str!("console/index.html");
const STYLE: &str = include_str!("console/console.css");
/// The scripts, each a module of its own.
const SCRIPTS: [(&str, &str); 4] = [
    ("/console/main.js", include_str!("console/main.js")),
    ("/console/api.js", include_str!("console/api.js")),
    ("/console/plot.js", include_str!("console/plot.js")),
    ("/console/search.js", include_str!("console/search.js")),
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page at `/` and what it loads.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new()
        .route("/", get(async || asset("text/html; charset=utf-8", PAGE)))
        .route(
            "/console/console.css",
            get(async || asset("text/css; charset=utf-8", STYLE)),
        );
    for (path, script) in SCRIPTS {
        let served = get(async move || asset("text/javascript; charset=utf-8", script));
        router = router.route(path, served);
    }
    router
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        // Another version of the node has another page at the same address.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text).into_response()
}
