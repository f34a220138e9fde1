//! The console in a real browser: what it shows, how it is used, at desktop and at phone width.
//!
//! Pictures of what it looked like are left in the target folder's `tmp`.

use serde_json::json;
use shoal_schemas::{Collection, FieldKind, Payload, Point, PointId, Value, Vector, route};
use tonic::Code;

use crate::{
    chromium::Chromium,
    console::EmbeddingEndpoint,
    indexer::{Behaviour, Indexer},
    world::{World, collection},
};

const TITLES: [&str; 6] = [
    "calm sea at night",
    "<img src=x onerror=\"document.title='taken over'\">",
    "harbour lights",
    "a school of herring turns at once",
    "tide tables of the north coast",
    "lantern fish",
];

async fn opened(world: &World) -> (Collection, Vec<Indexer>) {
    let mut docs = collection("docs", 4);
    docs.fields = [
        ("year".to_owned(), FieldKind::Integer),
        ("words".to_owned(), FieldKind::Keyword),
    ]
    .into();
    let indexers = world.spread(&docs).await;
    fill(&docs, &indexers, 0..200);
    (docs, indexers)
}

/// Puts points where they belong: each takes those of its shards.
fn fill(docs: &Collection, indexers: &[Indexer], points: std::ops::Range<u16>) {
    for n in points {
        let title = TITLES[usize::from(n) % TITLES.len()];
        let payload = Payload(
            [
                ("title".to_owned(), Value::String(title.to_owned())),
                ("year".to_owned(), Value::Integer(1990 + i64::from(n % 30))),
                (
                    "words".to_owned(),
                    Value::Strings(vec!["sea".into(), "night".into()]),
                ),
            ]
            .into(),
        );
        let point = Point {
            vector: Vector::new(&[f32::from(n), 0.0, 0.0], docs.dim, docs.metric).unwrap(),
            payload,
            model: None,
            event_time_ms: None,
            expires_at_ms: None,
        };
        let id = PointId::new(&format!("p{n}")).unwrap();
        let put = indexers
            .iter()
            .map(|one| one.node.upsert(docs, &id, &point));
        assert!(put.filter(Option::is_some).count() > 0);
    }
}

fn shown_ids(browser: &mut Chromium) -> Vec<String> {
    let ids = "[...document.querySelectorAll('#answer .id')].map(one => one.textContent)";
    serde_json::from_value(browser.value(ids)).unwrap()
}

/// Puts a text in place of what a field holds, as a person would.
fn fill_in(browser: &mut Chromium, id: &str, text: &str) {
    browser.value(&format!(
        "(() => {{ const field = document.getElementById({id:?}); field.focus(); field.select(); }})()"
    ));
    browser.type_text(text);
}

fn search_by(browser: &mut Chromium, by: &str, text: &str, first: &str) -> Vec<String> {
    browser.value(&format!(
        "document.querySelector('input[name=by][value={by}]').click()"
    ));
    fill_in(browser, "ask", text);
    browser.press("Enter");
    browser.until(&format!(
        "document.querySelector('#answer .id')?.textContent === {first:?}"
    ));
    shown_ids(browser)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_the_collection_and_searches_it() {
    let endpoint = EmbeddingEndpoint::start().await;
    let world = endpoint.world(None).await;
    let (docs, indexers) = opened(&world).await;
    let mut browser = Chromium::start("desktop");
    browser.resize(1280, 860, false);
    browser.prefer("light");
    browser.open(&world.url("/"));
    browser.until("document.getElementById('points').textContent === '200'");
    browser.until("document.getElementById('status').textContent === 'All shards answer'");
    let rows = "[...document.querySelectorAll('#shards tbody tr')].map(row => \
                [...row.cells].map(cell => cell.textContent))";
    let rows: Vec<Vec<String>> = serde_json::from_value(browser.value(rows)).unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!(&rows[2][..3], ["2", "ready", "node-2"]);
    assert_eq!(rows[2][10].len(), 16, "the digest's first half: {rows:?}");

    // By id, all by keyboard: from the top of the page to the field.
    let mut reached = Vec::new();
    for _ in 0..5 {
        browser.press("Tab");
        let at = "document.activeElement.id || document.activeElement.className || \
                  document.activeElement.value";
        reached.push(browser.value(at));
    }
    assert_eq!(
        json!(reached),
        json!(["skip", "collection", "id", "ask", "filter"])
    );
    // Nearest to p100 but itself: of equal distances the smaller id comes first.
    let found = search_by(&mut browser, "id", "p100", "p101");
    assert_eq!(found[..4], ["p101", "p99", "p102", "p98"]);
    let told = browser.value("document.querySelector('#answer .told').textContent");
    assert!(
        told.as_str().unwrap().contains("4 of 4 shards answered"),
        "{told}"
    );

    let found = search_by(&mut browser, "vector", "[50.4, 0, 0]", "p50");
    assert_eq!(found[..3], ["p50", "p51", "p49"]);
    // The endpoint of this test makes a text's length its first component.
    let found = search_by(&mut browser, "text", "seven b", "p7");
    assert_eq!(found.len(), 10);
    assert_eq!(endpoint_texts(&endpoint), ["seven b"]);
    fill_in(
        &mut browser,
        "filter",
        r#"{"field": "year", "equals": 1991}"#,
    );
    let found = search_by(&mut browser, "vector", "[31.0, 0, 0]", "p31");
    assert_eq!(found[..3], ["p31", "p1", "p61"]);

    // A payload is text, whatever stands in it.
    assert_eq!(
        browser.value("document.querySelectorAll('#answer img').length"),
        0
    );
    assert_eq!(browser.value("document.title"), "Shoal");
    // A refusal is shown where one looks.
    fill_in(&mut browser, "ask", "[1, 2]");
    browser.press("Enter");
    browser.until("document.getElementById('answer-fault').textContent.includes('2 components')");
    fill_in(&mut browser, "filter", "");
    search_by(&mut browser, "id", "p100", "p101");
    // A hit is asked about by a click.
    browser.value("document.querySelector('#answer .id').click()");
    browser.until("document.querySelector('#answer .id').textContent === 'p100'");

    browser.until("document.querySelectorAll('#latency path').length >= 2");
    browser.until("document.querySelectorAll('#ingest path').length >= 1");
    fill(&docs, &indexers, 200..260);
    browser.until("parseFloat(document.getElementById('ingest-now').textContent) > 0");
    browser.picture("desktop-light");
    browser.prefer("dark");
    browser.picture("desktop-dark");

    indexers[1].behave(Behaviour::Fails(Code::Unavailable));
    browser.until("document.getElementById('status').textContent === '1 of 4 shards silent'");
    browser.until("document.querySelector('#shards .state.bad')?.textContent === 'silent'");
    browser.picture("desktop-silent");
    assert_eq!(browser.complaints, Vec::<String>::new());
}

fn endpoint_texts(endpoint: &EmbeddingEndpoint) -> Vec<String> {
    let seen = endpoint.seen().into_iter();
    seen.map(|(_, asked)| asked["input"][0].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_shard_are_one_shard() {
    let world = World::start().await;
    let (docs, indexers) = opened(&world).await;
    let replica = world.replica(&docs, Some("b")).await;
    fill(&docs, std::slice::from_ref(&replica), 0..200);
    let mut browser = Chromium::start("copies");
    browser.resize(1280, 860, false);
    browser.prefer("light");
    browser.open(&world.url("/"));
    browser.until("document.getElementById('points').textContent === '200'");
    browser.until("document.getElementById('status').textContent === 'All shards answer'");
    let text = |browser: &mut Chromium, id: &str| {
        browser.value(&format!("document.getElementById({id:?}).textContent"))
    };
    assert_eq!(text(&mut browser, "answering"), "4 of 4");
    assert_eq!(
        text(&mut browser, "answering-note"),
        "5 indexers, 8 of 8 copies"
    );
    let rows = "[...document.querySelectorAll('#shards tbody tr')].map(row => \
                [...row.cells].map(cell => cell.textContent))";
    let rows: Vec<Vec<String>> = serde_json::from_value(browser.value(rows)).unwrap();
    assert_eq!(rows.len(), 8);
    for (n, pair) in rows.chunks(2).enumerate() {
        let [own, copy] = pair else { unreachable!() };
        assert_eq!(
            own[..3],
            [n.to_string(), "ready".into(), format!("node-{n}")]
        );
        let named = "node-of-b (b)".to_owned();
        assert_eq!(copy[..3], [n.to_string(), "ready".into(), named]);
        assert_eq!(own[3], copy[3], "as many points: {rows:?}");
        assert!(
            own[4].ends_with('s') && copy[4].ends_with('s'),
            "lags: {rows:?}"
        );
        assert_eq!(
            (own[10].len(), &own[10]),
            (16, &copy[10]),
            "digests: {rows:?}"
        );
    }
    browser.picture("copies");

    // An owner that is silent costs no points, nor does the replica.
    indexers[1].behave(Behaviour::Fails(Code::Unavailable));
    browser.until("document.getElementById('status').textContent === '1 of 8 copies silent'");
    assert_eq!(text(&mut browser, "points"), "200");
    assert_eq!(text(&mut browser, "answering"), "4 of 4");
    replica.behave(Behaviour::Fails(Code::Unavailable));
    browser.until("document.getElementById('status').textContent === '1 of 4 shards silent'");
    assert_eq!(text(&mut browser, "answering"), "3 of 4");
    indexers[1].behave(Behaviour::Answers);
    replica.behave(Behaviour::Answers);
    browser.until("document.getElementById('status').textContent === 'All shards answer'");

    // Equally far, and not the same: somebody is wrong.
    let of_first = |n: &u16| {
        let id = PointId::new(&format!("p{n}")).unwrap();
        route::partition_of(&docs, &id).0 == 0
    };
    let mut others = (200..).filter(of_first);
    let (one, other) = (others.next().unwrap(), others.next().unwrap());
    fill(&docs, &indexers, one..one + 1);
    fill(&docs, std::slice::from_ref(&replica), other..other + 1);
    browser.until("document.getElementById('status').textContent === 'Copies of shard 0 differ'");
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fits_a_phone() {
    let world = World::start().await;
    let (_, indexers) = opened(&world).await;
    let mut browser = Chromium::start("phone");
    browser.resize(375, 812, true);
    browser.prefer("light");
    browser.open(&world.url("/#docs"));
    browser.until("document.getElementById('points').textContent === '200'");
    search_by(&mut browser, "id", "p100", "p101");
    indexers[1].behave(Behaviour::Fails(Code::Unavailable));
    browser.until("document.querySelector('#shards .state.bad') !== null");
    assert_eq!(
        browser.value("document.documentElement.scrollWidth"),
        375,
        "nothing sticks out at the side"
    );
    let outside = "[...document.querySelectorAll('body *')].filter(one => { \
        const box = one.getBoundingClientRect(); \
        return box.width > 1 && !one.closest('.skip, .hidden') && (box.right > 376 || box.left < -1); \
        }).map(one => one.outerHTML.slice(0, 80))";
    assert_eq!(browser.value(outside), json!([]));
    // A field below 16 px makes a phone zoom in; a target below 40 px is missed.
    let small = "[...document.querySelectorAll('input:not([type=radio], [type=checkbox]), select, button[type=submit]')] \
        .filter(one => parseFloat(getComputedStyle(one).fontSize) < 16 || one.offsetHeight < 40).map(one => one.id)";
    assert_eq!(browser.value(small), json!([]));
    // Without an endpoint there is nothing to choose.
    assert_eq!(
        browser.value("document.querySelector('input[value=text]').disabled"),
        true
    );
    browser.picture("phone-light");
    browser.prefer("dark");
    browser.picture("phone-dark");
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_collections_and_without_a_node_it_says_so() {
    let world = World::start().await;
    let mut browser = Chromium::start("empty");
    browser.resize(1280, 860, false);
    browser.open(&world.url("/"));
    browser.until("document.getElementById('status').textContent === 'No collection yet'");
    let shown = "document.getElementById('empty').offsetHeight > 0";
    assert_eq!(browser.value(shown), true);
    let hidden = "document.getElementById('shards').offsetHeight";
    assert_eq!(browser.value(hidden), 0);
    browser.picture("empty");
    assert_eq!(browser.complaints, Vec::<String>::new());
    world.tasks.cancel().cancel();
    browser.until("document.getElementById('fault').textContent === 'The node does not answer.'");
}
