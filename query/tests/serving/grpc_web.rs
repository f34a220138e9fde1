//! grpc-web as a browser speaks it, and from one: HTTP/1.1, frames in the body, trailers as the last frame.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message as _;
use reqwest::{
    Method, StatusCode,
    header::{
        ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_TYPE, ORIGIN,
    },
};
use shoal_query::Config;
use shoal_schemas::v1;

use crate::{
    chromium::Chromium,
    world::{World, collection, fill, ids, near_origin},
};

const APP: &str = "https://app.example.com";

/// One message as grpc-web frames it.
fn framed(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), &message].concat()
}

/// The frames of an answer: whether each holds trailers, and its bytes.
fn frames(mut body: &[u8]) -> Vec<(bool, Vec<u8>)> {
    let mut found = Vec::new();
    while let [flags, a, b, c, d, rest @ ..] = body {
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap();
        found.push((flags & 0x80 != 0, rest[..length].to_vec()));
        body = &rest[length..];
    }
    assert!(body.is_empty(), "{} bytes are no frame", body.len());
    found
}

fn method(world: &World, name: &str) -> String {
    format!("http://{}/shoal.v1.Search/{name}", world.addresses.grpc)
}

async fn call(world: &World, name: &str, kind: &str, body: Vec<u8>) -> reqwest::Response {
    let client = reqwest::Client::builder().http1_only().build().unwrap();
    let sent = client.post(method(world, name)).header(CONTENT_TYPE, kind);
    let sent = sent
        .header(ACCEPT, kind)
        .header("x-grpc-web", "1")
        .header(ORIGIN, APP);
    sent.body(body).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_works_over_plain_http_1() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 12);
    let asked = framed(&near_origin(&docs, 3));
    let answer = call(
        &world,
        "Search",
        "application/grpc-web+proto",
        asked.clone(),
    )
    .await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.version(), reqwest::Version::HTTP_11);
    let kind = answer.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/grpc-web"), "{kind}");
    let binary = frames(&answer.bytes().await.unwrap());
    let [(false, message), (true, trailers)] = &binary[..] else {
        panic!("{binary:?}");
    };
    let found = v1::SearchResponse::decode(&message[..]).unwrap();
    assert_eq!(ids(&found.hits), ["p0", "p1", "p2"]);
    let trailers = String::from_utf8_lossy(trailers);
    assert!(trailers.contains("grpc-status:0"), "{trailers}");

    // The same as base64, which is what browsers without binary bodies send. Each piece is encoded
    // for itself, so padding may stand in the middle.
    let text = STANDARD.encode(&asked).into_bytes();
    let answer = call(&world, "Search", "application/grpc-web-text+proto", text).await;
    let body = answer.text().await.unwrap();
    let groups = body
        .as_bytes()
        .chunks(4)
        .map(|group| STANDARD.decode(group).unwrap());
    let decoded: Vec<u8> = groups.flatten().collect();
    let [(false, message), (true, _)] = &frames(&decoded)[..] else {
        panic!("{body}");
    };
    let found = v1::SearchResponse::decode(&message[..]).unwrap();
    assert_eq!(ids(&found.hits), ["p0", "p1", "p2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_comes_with_its_code() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    let asked = framed(&near_origin(&docs, 3));
    let answer = call(&world, "Search", "application/grpc-web+proto", asked).await;
    assert_eq!(answer.status(), StatusCode::OK);
    // A call that fails at once has its status among the headers.
    let header = answer.headers().get("grpc-status");
    let header = header.map(|value| value.to_str().unwrap().to_owned());
    let frames = frames(&answer.bytes().await.unwrap());
    let trailers: String = (frames.iter().filter(|(is_trailer, _)| *is_trailer))
        .map(|(_, text)| String::from_utf8_lossy(text).into_owned())
        .collect();
    assert!(
        header.as_deref() == Some("5") || trailers.contains("grpc-status:5"),
        "{header:?} {trailers}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_the_configured_origins_may_ask() {
    let config = Config {
        cors_origins: vec![APP.into()],
        ..Config::default()
    };
    let open = World::start_with(config, true).await;
    let closed = World::start().await;
    let client = reqwest::Client::new();
    for (world, origin, is_allowed) in [
        (&open, APP, true),
        (&open, "https://elsewhere.example.com", false),
        (&closed, APP, false),
    ] {
        for url in [
            method(world, "Search"),
            world.url("/v1/collections/docs/search"),
        ] {
            let sent = client.request(Method::OPTIONS, &url).header(ORIGIN, origin);
            let sent = sent.header(ACCESS_CONTROL_REQUEST_METHOD, "POST");
            let answer = sent.send().await.unwrap();
            let headers = answer.headers();
            let allowed = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN);
            let allowed = allowed.map(|value| value.to_str().unwrap());
            assert_eq!(allowed, is_allowed.then_some(origin), "{url} from {origin}");
            if is_allowed {
                let names = headers[ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap();
                for name in ["content-type", "x-grpc-web", "grpc-timeout"] {
                    assert!(names.contains(name), "{names}");
                }
            }
        }
    }
    let docs = collection("docs", 1);
    let asked = framed(&near_origin(&docs, 3));
    let answer = call(&open, "Search", "application/grpc-web+proto", asked).await;
    let exposed = answer.headers()[ACCESS_CONTROL_EXPOSE_HEADERS]
        .to_str()
        .unwrap();
    assert!(
        exposed.contains("grpc-status") && exposed.contains("grpc-message"),
        "{exposed}"
    );
}

/// What a page gets that calls a method: the answer's bytes, or the name of the error that it is told.
fn called_by_page(browser: &mut Chromium, url: &str, body: &[u8]) -> Result<Vec<u8>, String> {
    let body = STANDARD.encode(body);
    let told = browser.value(&format!(
        "(async () => {{
            const headers = {{'content-type': 'application/grpc-web+proto', 'x-grpc-web': '1'}};
            const body = Uint8Array.from(atob('{body}'), (one) => one.charCodeAt(0));
            try {{
                const answer = await fetch('{url}', {{method: 'POST', headers, body}});
                const bytes = new Uint8Array(await answer.arrayBuffer());
                return {{bytes: btoa(String.fromCharCode(...bytes))}};
            }} catch (error) {{
                return {{error: error.name}};
            }}
        }})()"
    ));
    match told["bytes"].as_str() {
        Some(bytes) => Ok(STANDARD.decode(bytes).unwrap()),
        None => Err(told["error"].as_str().unwrap().to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser_searches_where_its_origin_may() {
    // Its page is of one origin, the others serve gRPC at ports of their own.
    let closed = World::start().await;
    let config = Config {
        cors_origins: vec![format!("http://{}", closed.addresses.http)],
        ..Config::default()
    };
    let open = World::start_with(config, true).await;
    let docs = collection("docs", 2);
    for world in [&open, &closed] {
        let indexers = world.spread(&docs).await;
        fill(&indexers, &docs, 12);
    }
    let mut browser = Chromium::start("grpc-web");
    browser.open(&closed.url("/openapi.json"));
    let asked = framed(&near_origin(&docs, 3));
    let answer = called_by_page(&mut browser, &method(&open, "Search"), &asked).unwrap();
    let [(false, message), (true, trailers)] = &frames(&answer)[..] else {
        panic!("{answer:?}");
    };
    let found = v1::SearchResponse::decode(&message[..]).unwrap();
    assert_eq!(ids(&found.hits), ["p0", "p1", "p2"]);
    let trailers = String::from_utf8_lossy(trailers);
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    let refused = called_by_page(&mut browser, &method(&closed, "Search"), &asked);
    assert_eq!(
        refused,
        Err("TypeError".into()),
        "the browser keeps it from the page"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_search_is_not_told_what_browsers_read() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 3);
    let found = world.search().search(near_origin(&docs, 3)).await.unwrap();
    assert_eq!(found.get_ref().hits.len(), 3);
    let headers = found.metadata();
    assert!(headers.get("vary").is_none(), "{headers:?}");
    // What goes by the layers for browsers has it.
    let asked = framed(&near_origin(&docs, 3));
    let answer = call(&world, "Search", "application/grpc-web+proto", asked).await;
    assert!(answer.headers().contains_key("vary"));
}
