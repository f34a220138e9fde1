// The console: reads the node every two seconds, keeps five minutes of it, and shows it.

import { call, collectionPath, meters, quantile, Refused } from "./api.js";
import { draw, SPAN_MS } from "./plot.js";
import * as search from "./search.js";

const EVERY_MS = 2000;
const LATE_SECONDS = 5;
const $ = (id) => document.getElementById(id);

// [{ time, meters, applied: Map(shard -> next_offset) | null }], oldest first.
let readings = [];
let collection = null;
let turn = 0;
// Shards whose copies differed in the last reading.
let differed = new Set();

const count = (number) => Math.round(number).toLocaleString("en");

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (number >= 1024 && at < units.length - 1) {
    number /= 1024;
    at += 1;
  }
  return `${number < 10 && at ? number.toFixed(1) : Math.round(number)} ${units[at]}`;
}

function seconds(number) {
  if (number < 1) return `${Math.round(number * 1000)} ms`;
  if (number < 120) return `${number < 10 ? number.toFixed(1) : Math.round(number)} s`;
  return number < 7200 ? `${Math.round(number / 60)} min` : `${Math.round(number / 3600)} h`;
}

function rate(number) {
  if (number === 0) return "0";
  if (number < 10) return number.toFixed(1);
  if (number < 10_000) return count(number);
  return number < 1e6 ? `${(number / 1000).toFixed(0)}k` : `${(number / 1e6).toFixed(1)}M`;
}

function millis(secondsGiven) {
  const ms = secondsGiven * 1000;
  if (ms === 0) return "0";
  return `${ms < 10 ? ms.toFixed(ms < 1 ? 2 : 1) : Math.round(ms)} ms`;
}

function figure(id, value, unit) {
  const parts = [value];
  if (unit) {
    const small = document.createElement("small");
    small.textContent = ` ${unit}`;
    parts.push(small);
  }
  $(id).replaceChildren(...parts);
}

function status(kind, text) {
  $("status").className = `status ${kind}`;
  $("status").textContent = text;
}

async function read() {
  const mine = ++turn;
  try {
    const { collections } = await call("/v1/collections");
    offer(collections);
    const name = collection;
    const asked = name ? call(collectionPath(name, "/shards?timeout_ms=1500")) : { shards: [] };
    const [counted, { shards }] = await Promise.all([meters(), asked]);
    if (mine !== turn || name !== collection) return;
    const applied = new Map();
    for (const { number, copies } of byNumber(shards)) {
      const offsets = copies.filter((copy) => copy.answered).map((copy) => copy.next_offset);
      if (offsets.length) applied.set(number, Math.max(...offsets));
    }
    const time = Date.now();
    readings.push({ time, meters: counted, applied });
    readings = readings.filter((one) => one.time >= time - SPAN_MS - 2 * EVERY_MS);
    $("fault").hidden = true;
    const definition = collections.find((one) => one.name === name);
    glance(shards, definition);
    plots(time);
    table(shards);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (mine !== turn) return;
    status("bad", "Not connected");
    $("fault").textContent = error.message;
    $("fault").hidden = false;
  }
}

function offer(collections) {
  const select = $("collection");
  const names = collections.map((one) => one.name);
  const offered = [...select.options].map((option) => option.value);
  if (names.join("\n") !== offered.join("\n")) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    select.disabled = names.length === 0;
    if (!names.length) select.replaceChildren(new Option("none yet", ""));
  }
  const wanted = decodeURIComponent(location.hash.slice(1));
  const next = names.includes(wanted) ? wanted : names.includes(collection) ? collection : (names[0] ?? null);
  if (next !== collection) choose(next);
  if (next) select.value = next;
  const definition = collections.find((one) => one.name === collection) ?? null;
  search.setCollection(definition);
  about(definition);
}

function choose(name) {
  collection = name;
  differed = new Set();
  readings = readings.map((one) => ({ ...one, applied: null }));
}

// Each shard with its copies: its owner's, and one of each replica set. What one copy holds is what all of them hold, so
// a shard is told by one of those that answer: the owner's, else one that is ready.
function byNumber(rows) {
  const shards = new Map();
  for (const row of rows) shards.set(row.shard, [...(shards.get(row.shard) ?? []), row]);
  return [...shards].map(([number, copies]) => {
    const answering = copies.filter((copy) => copy.answered);
    const told = answering.find((copy) => !copy.set) ?? answering.find((copy) => copy.ready) ?? answering[0];
    return { number, copies, told };
  });
}

// Copies that have come equally far and hold something else. A copy may show what it holds a moment before how far that
// is, so they differ if they do in two readings one after the other.
function differ({ copies }) {
  const answering = copies.filter((copy) => copy.answered);
  return answering.some((a) => answering.some((b) => a.next_offset === b.next_offset && a.digest !== b.digest));
}

function glance(rows, definition) {
  $("empty").hidden = Boolean(definition);
  for (const section of document.querySelectorAll(".filled")) section.hidden = !definition;
  if (!definition) {
    status("warn", "No collection yet");
    return;
  }
  const shards = byNumber(rows);
  const told = shards.flatMap((shard) => shard.told ?? []);
  const answering = rows.filter((row) => row.answered);
  const hasCopies = rows.length > shards.length;
  const sum = (some, field) => some.reduce((all, row) => all + row[field], 0);
  const missing = shards.length - told.length;
  figure("points", count(sum(told, "points")));
  const contested = sum(told, "contested");
  const scanned = sum(told, "memtable_rows");
  $("points-note").textContent = [
    missing ? `without ${missing} silent ${missing === 1 ? "shard" : "shards"}` : "",
    contested ? `${count(contested)} contested` : "",
    scanned ? `${count(scanned)} newest scanned` : "",
  ].filter(Boolean).join(", ");
  figure("answering", `${told.length}`, `of ${shards.length}`);
  const nodes = new Set(answering.map((row) => row.node));
  $("answering-note").textContent = [
    `${nodes.size} ${nodes.size === 1 ? "indexer" : "indexers"}`,
    hasCopies ? `${answering.length} of ${rows.length} copies` : "",
  ].filter(Boolean).join(", ");
  const lags = answering.map((row) => row.lag_seconds);
  const most = Math.max(0, ...lags);
  const [value, unit] = seconds(most).split(" ");
  figure("lag", answering.length ? value : "–", answering.length ? unit : "");
  $("lag-note").textContent = most > LATE_SECONDS ? "a shard is behind its topic" : "since a shard last held everything";
  const [index, log] = [sum(answering, "index_bytes"), sum(answering, "wal_bytes")];
  const [size, sizeUnit] = bytes(index + log).split(" ");
  figure("size", size, sizeUnit);
  $("size-note").textContent = `${bytes(index)} index, ${bytes(log)} log${hasCopies ? ", all copies" : ""}`;
  const restoring = told.length - shards.filter(({ copies }) => copies.some((copy) => copy.answered && copy.ready)).length;
  const silent = rows.length - answering.length;
  const differing = shards.filter(differ).map((shard) => shard.number);
  const other = differing.find((number) => differed.has(number));
  differed = new Set(differing);
  if (missing) status("bad", `${missing} of ${shards.length} shards silent`);
  else if (other !== undefined) status("bad", `Copies of shard ${other} differ`);
  else if (restoring) status("warn", `${restoring} of ${shards.length} shards not ready`);
  else if (silent) status("warn", `${silent} of ${rows.length} copies silent`);
  else if (most > LATE_SECONDS) status("warn", "Behind");
  else status("good", "All shards answer");
}

function plots(now) {
  const [p50, p99, searches, ingest] = [[], [], [], []];
  for (let at = 1; at < readings.length; at += 1) {
    const [before, after] = [readings[at - 1], readings[at]];
    const time = after.time;
    const passed = (time - before.time) / 1000;
    // The page slept, or the node did not answer: nothing is known of the time between.
    const isGap = passed > 3 * (EVERY_MS / 1000);
    const none = isGap || after.meters.vectors < before.meters.vectors;
    p50.push([time, none ? null : quantile(before.meters.buckets, after.meters.buckets, 0.5)]);
    p99.push([time, none ? null : quantile(before.meters.buckets, after.meters.buckets, 0.99)]);
    searches.push([time, none ? null : (after.meters.vectors - before.meters.vectors) / passed]);
    ingest.push([time, isGap ? null : applied(before.applied, after.applied, passed)]);
  }
  draw($("latency"), [{ points: p50 }, { points: p99 }], now, millis, 0.01);
  draw($("rate"), [{ points: searches }], now, rate, 10);
  draw($("ingest"), [{ points: ingest }], now, rate, 10);
  const last = (points) => points.at(-1)?.[1] ?? null;
  const [a, b] = [last(p50), last(p99)];
  $("latency-now").textContent = a === null ? "idle" : `${millis(a)} / ${millis(b)}`;
  $("rate-now").textContent = last(searches) === null ? "–" : `${rate(last(searches))} queries/s`;
  $("ingest-now").textContent = last(ingest) === null ? "–" : `${rate(last(ingest))} records/s`;
}

// Records a second over the shards that answered both times; an offset that fell was reset.
function applied(before, after, passed) {
  if (!before || !after) return null;
  let records = 0;
  let known = 0;
  for (const [shard, next] of after) {
    if (!before.has(shard)) continue;
    known += 1;
    records += Math.max(0, next - before.get(shard));
  }
  return known ? records / passed : null;
}

const COLUMNS = ["Shard", "State", "Node", "Points", "Lag", "Next offset", "Memtable", "Graph", "Ended", "Size", "Digest"];
const NUMBERS = new Set(["Points", "Lag", "Next offset", "Memtable", "Graph", "Ended", "Size"]);

function table(shards) {
  const made = document.createElement("table");
  made.className = "cards";
  const head = made.createTHead().insertRow();
  for (const name of COLUMNS) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    if (NUMBERS.has(name)) cell.className = "number";
    head.append(cell);
  }
  const body = made.createTBody();
  for (const shard of shards) line(body.insertRow(), shard);
  $("shards").replaceChildren(made);
}

function line(row, shard) {
  const put = (name, text, kind = NUMBERS.has(name) ? "number" : "") => {
    const cell = row.insertCell();
    cell.dataset.name = name;
    cell.className = kind;
    cell.append(text);
    return cell;
  };
  const state = document.createElement("span");
  state.className = `state ${shard.answered ? (shard.ready ? "" : "warn") : "bad"}`;
  state.textContent = shard.answered ? (shard.ready ? "ready" : "not ready") : shard.node ? "silent" : "no owner";
  put("Shard", String(shard.shard));
  put("State", state);
  const node = shard.set ? `${shard.node} (${shard.set})` : shard.node;
  put("Node", node || "–").title = shard.address;
  if (!shard.answered) {
    put("Error", shard.error, "wrap").colSpan = COLUMNS.length - 3;
    return;
  }
  put("Points", count(shard.points));
  const lag = put("Lag", seconds(shard.lag_seconds));
  if (shard.lag_seconds > LATE_SECONDS) lag.classList.add("late");
  put("Next offset", count(shard.next_offset));
  put("Memtable", count(shard.memtable_rows));
  put("Graph", count(shard.graph_rows));
  put("Ended", count(shard.dead_rows));
  put("Size", bytes(shard.index_bytes + shard.wal_bytes));
  put("Digest", shard.digest.slice(0, 16), "mono digest whole").title = shard.digest;
}

function placed(definition) {
  const told = (labels) => Object.entries(labels ?? {}).map(([name, value]) => `${name}=${value}`).join(", ");
  const tenants = Object.entries(definition.tenant_placement ?? {}).map(([name, labels]) => `${name}: ${told(labels)}`);
  return [told(definition.placement), ...tenants].filter(Boolean).join("; ") || "any indexer";
}

let shown = "";
function about(definition) {
  const text = JSON.stringify(definition);
  if (text === shown) return;
  shown = text;
  const rows = definition ? [
    ["Dimension", count(definition.dim)],
    ["Metric", definition.metric.replaceAll("_", " ")],
    ["Shards", count(definition.partitions)],
    ["Partitioner", definition.partitioner],
    ["Routed by", definition.split_keys?.length ? `ranges of ids, split at ${definition.split_keys.join(", ")}`
      : definition.route_by_key_prefix ? "the id up to its first /" : "the whole id"],
    ["Placed on", placed(definition)],
    ["Graph", Object.entries(definition.index ?? {}).map(([name, value]) => `${name} ${value}`).join(", ")],
    ["Largest record", bytes(definition.max_record_bytes)],
    ["Fields", Object.entries(definition.fields ?? {}).map(([name, kind]) => `${name}: ${kind}`).join(", ") || "none declared"],
  ] : [];
  $("about").replaceChildren(...rows.map(([name, value]) => {
    const [pair, term, told] = ["div", "dt", "dd"].map((kind) => document.createElement(kind));
    term.textContent = name;
    told.textContent = value;
    pair.append(term, told);
    return pair;
  }));
}

async function describe() {
  try {
    const node = await call("/v1/node");
    $("version").textContent = `Shoal ${node.version}`;
    search.setNode(node);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
  }
}

$("collection").addEventListener("change", (event) => {
  location.hash = encodeURIComponent(event.target.value);
});
window.addEventListener("hashchange", () => void read());
window.addEventListener("resize", () => plots(Date.now()));
search.start();
void describe();
// One reading ends before the next begins, so a slow node is not asked the more for it.
for (;;) {
  await read();
  await new Promise((done) => setTimeout(done, EVERY_MS));
}
