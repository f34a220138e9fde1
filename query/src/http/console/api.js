// Asking the node: JSON in, JSON out, and what a failure says. Nothing here knows of the page.

export class Refused extends Error {}

export async function call(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store" });
  } catch {
    throw new Refused("The node does not answer.");
  }
  const text = await response.text();
  let answer = {};
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Refused(`The node answered status ${response.status} without JSON.`);
  }
  if (!response.ok) throw new Refused(answer.error?.message ?? `The node answered status ${response.status}.`);
  return answer;
}

export const collectionPath = (name, rest = "") => `/v1/collections/${encodeURIComponent(name)}${rest}`;

// The node's own counters, from Prometheus' text: one histogram and one counter are enough here.
export async function meters() {
  const response = await fetch("/metrics", { cache: "no-store" });
  return parseMeters(await response.text());
}

export function parseMeters(text) {
  const buckets = new Map();
  let vectors = 0;
  for (const line of text.split("\n")) {
    const bucket = line.match(/^vector_search_latency_seconds_bucket\{([^}]*)\} (\S+)/);
    if (bucket && bucket[1].includes('stage="total"')) {
      const le = bucket[1].match(/le="([^"]+)"/)[1];
      buckets.set(le === "+Inf" ? Infinity : Number(le), Number(bucket[2]));
      continue;
    }
    const counted = line.match(/^query_vectors_total(?:\{[^}]*\})? (\S+)/);
    if (counted) vectors += Number(counted[1]);
  }
  return { buckets, vectors };
}

// The quantile of what was counted between two readings, seconds; null if nothing was. Inside a
// bucket it is interpolated, as Prometheus' histogram_quantile does.
export function quantile(before, after, share) {
  const bounds = [...after.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => after.get(bound) - (before.get(bound) ?? 0));
  const total = counts.at(-1) ?? 0;
  if (!(total > 0)) return null;
  const rank = share * total;
  let lower = 0;
  let below = 0;
  for (const [at, bound] of bounds.entries()) {
    if (counts[at] >= rank) {
      if (bound === Infinity) return lower;
      const inside = counts[at] - below;
      return inside > 0 ? lower + ((bound - lower) * (rank - below)) / inside : bound;
    }
    lower = bound;
    below = counts[at];
  }
  return lower;
}
