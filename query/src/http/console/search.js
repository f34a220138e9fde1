// The search box: by id, by vector, or by text. What comes back is put into the page as text only.

import { call, collectionPath, Refused } from "./api.js";

const $ = (id) => document.getElementById(id);

const MODES = {
  id: { label: "Id of a point", note: "Points like the one with this id.", placeholder: "" },
  vector: { label: "Vector, as a JSON array", note: "", placeholder: "[0.12, -0.4, 0.88]" },
  text: { label: "Text", note: "", placeholder: "calm sea at night" },
};

let node = {};
let collection = null;

export function setNode(told) {
  node = told;
  const option = document.querySelector('input[name="by"][value="text"]');
  option.disabled = !node.embedding_model;
  option.parentElement.title = node.embedding_model ? "" : "Set query.embedding.url and query.embedding.model to search by text";
  showMode();
}

export function setCollection(definition) {
  if (collection?.name !== definition?.name) {
    $("answer").replaceChildren();
    $("answer-fault").hidden = true;
  }
  collection = definition;
  showMode();
}

function mode() {
  return document.querySelector('input[name="by"]:checked').value;
}

function showMode() {
  const by = mode();
  $("ask-label").textContent = MODES[by].label;
  $("ask").placeholder = MODES[by].placeholder;
  let note = MODES[by].note;
  if (by === "vector" && collection) note = `${collection.dim} numbers.`;
  if (by === "text") note = `Embedded with ${node.embedding_model}.`;
  if (!node.embedding_model && by !== "text") note += " By text needs an embedding endpoint in the node's settings.";
  $("ask-note").textContent = note.trim();
}

export function start() {
  for (const option of document.querySelectorAll('input[name="by"]')) {
    option.addEventListener("change", () => {
      $("ask").value = "";
      showMode();
      $("ask").focus();
    });
  }
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    void run();
  });
}

async function run() {
  if (!collection) return;
  const button = $("search").querySelector("button");
  button.disabled = true;
  $("answer-fault").hidden = true;
  try {
    const started = performance.now();
    const answer = await ask();
    show(answer, performance.now() - started);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("answer").replaceChildren();
    $("answer-fault").textContent = error.message;
    $("answer-fault").hidden = false;
  } finally {
    button.disabled = false;
  }
}

async function ask() {
  const asked = $("ask").value.trim();
  const wanted = { k: Number($("k").value) || 10, with_payload: true, explain: true, exact: $("exact").checked };
  if ($("filter").value.trim()) wanted.filter = json($("filter").value, "The filter");
  if (mode() === "id") {
    return call(collectionPath(collection.name, "/recommend"), { ...wanted, positive: [asked] });
  }
  let vector;
  if (mode() === "vector") {
    vector = json(asked, "The vector");
  } else {
    vector = (await call("/v1/embed", { text: asked })).vector;
  }
  return call(collectionPath(collection.name, "/search"), { ...wanted, vector });
}

function json(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Refused(`${what} is no JSON: ${error.message}`);
  }
}

function make(name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(answer, tookMs) {
  const { coverage, hits, explain } = answer;
  const silent = coverage.shards.filter((shard) => !shard.answered);
  const told = [`${hits.length} ${hits.length === 1 ? "point" : "points"} in ${tookMs.toFixed(0)} ms`];
  told.push(`${coverage.shards_answered} of ${coverage.shards_asked} shards answered`);
  const parts = [make("p", "told", told.join(", "))];
  for (const shard of silent) parts.push(make("p", "fault", `Shard ${shard.shard}: ${shard.error}`));
  const list = make("ol", "hits");
  list.append(...hits.map(row));
  parts.push(hits.length ? list : make("p", "told", "Nothing matches."));
  parts.push(explained(explain));
  $("answer").replaceChildren(...parts);
}

function row(hit) {
  const item = make("li", "hit");
  const id = make("button", "id mono", hit.id);
  id.type = "button";
  id.title = "Search for points like this one";
  id.addEventListener("click", () => {
    document.querySelector('input[name="by"][value="id"]').checked = true;
    showMode();
    $("ask").value = hit.id;
    $("search").requestSubmit();
  });
  const payload = make("span", "payload");
  for (const [name, value] of Object.entries(hit.payload ?? {})) {
    const field = make("span");
    field.append(make("b", "", name), Array.isArray(value) ? value.join(", ") : String(value));
    payload.append(field);
  }
  item.append(make("span", "mono", hit.distance.toFixed(6)), id, payload);
  return item;
}

function explained(shards) {
  const details = make("details", "explain");
  details.append(make("summary", "", "What each shard did"));
  const table = make("table", "cards");
  const head = make("tr");
  const names = ["Shard", "Plan", "Rows compared", "Segments", "Plan ms", "Search ms", "Re-score ms", "Payload ms"];
  for (const [at, name] of names.entries()) head.append(make("th", at > 1 ? "number" : "", name));
  const rows = shards.map((shard) => {
    const cells = make("tr");
    const ms = (us) => (us / 1000).toFixed(2);
    const values = [shard.shard, shard.plan.replaceAll("_", " "), shard.rows_scanned.toLocaleString("en"), shard.segments];
    values.push(ms(shard.plan_us), ms(shard.search_us), ms(shard.rescore_us), ms(shard.payload_us));
    for (const [at, value] of values.entries()) {
      const cell = make("td", at > 1 ? "number" : "", value);
      cell.dataset.name = names[at];
      cells.append(cell);
    }
    return cells;
  });
  const [top, body] = [make("thead"), make("tbody")];
  top.append(head);
  body.append(...rows);
  table.append(top, body);
  const scroll = make("div", "scroll");
  scroll.append(table);
  details.append(scroll);
  return details;
}
