"""`peers`: queries a second at recall@10 .95 over their network API of systems from package registries, beside ours.

Called by tests/bench/run. One system runs at a time; all are asked the same by the same clients (load.py, wire.py).
Standard output ends in one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from load import drive, once
from systems import EF_CONSTRUCTION, M, PEERS, Shoal
from wire import K

TARGET = 0.95
BEAMS = (10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 512)
CLIENTS = 2
TIE = 1e-5


def main():
    options = parse()
    rows = unit(np.load(f"{options.data}/w_base_f16.npy", mmap_mode="r")[: options.rows])
    queries = unit(np.load(f"{options.data}/w_queries_f16.npy"))
    limits = kth_products(rows, queries)
    wanted = {"shoal": lambda folder: Shoal(folder, options.shoal), **PEERS}
    figures, failed = {}, {}
    for name, make in wanted.items():
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory(prefix=f"peers-{name}-") as folder:
            system = make(folder)
            try:
                figures[name] = measure(system, rows, queries, limits, options)
            except Exception as error:  # noqa: BLE001 - one that does not run here is told, not fatal
                if name == "shoal":
                    raise
                failed[name] = str(error)[-500:]
                print(f"{name}: not measured: {error}", flush=True)
            finally:
                system.stop()
    told(figures)
    print(json.dumps(answer(figures, failed, rows, queries, options)))


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", default="peers")
    parser.add_argument("--shoal", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--only", action="append")
    return parser.parse_args()


def measure(system, rows, queries, limits, options):
    system.start()
    began = time.monotonic()
    system.load(rows)
    took = time.monotonic() - began
    print(f"{system.name} {system.version}: {len(rows)} rows in {took:.0f} s", flush=True)
    half = len(queries) // 2

    def recall(ef, first, end):
        asked = [system.request(query, ef) for query in queries[first:end]]
        answers = once(system.connection(ef), asked)
        found = zip(queries[first:end], limits[first:end], map(system.rows, answers))
        return statistics.fmean(share(rows, query, limit, ids) for query, limit, ids in found)

    # Chosen on the first half of the queries, reported on the second.
    chosen = []
    for ef in BEAMS:
        chosen.append(ef)
        if recall(ef, 0, half) >= TARGET:
            break
    at = BEAMS.index(chosen[-1])
    timed = BEAMS[max(0, at - 1) : at + 2]
    points = []
    for ef in timed:
        asked = [system.request(query, ef) for query in queries[half:]]
        connection = system.connection(ef)
        rates, costs = [], []
        for _ in range(options.repeats):
            count, seconds, cpu = drive(connection, asked, CLIENTS, options.seconds, system.pids)
            rates.append(count / seconds)
            costs.append(cpu / count * 1e6)
        point = {
            "ef": ef,
            "recall_at_10": round(recall(ef, half, len(queries)), 4),
            "queries_per_second": round(statistics.median(rates)),
            "spread": [round(min(rates)), round(max(rates))],
            "server_cpu_us": round(statistics.median(costs)),
        }
        points.append(point)
        print(f"  {system.name} ef {ef}: {point}", flush=True)
    figure = {"version": system.version, "settings": system.settings, "load_seconds": round(took, 1), "swept": points}
    return {**figure, **at_recall(points)}


def at_recall(points):
    """The rate at the target: a query's time, interpolated in recall between the beams around it."""
    above = next((at for at, point in enumerate(points) if point["recall_at_10"] >= TARGET), None)
    if above is None:
        return {"queries_per_second": None, "recall_at_10": points[-1]["recall_at_10"]}
    high = points[above]
    if above == 0:
        names = ("queries_per_second", "server_cpu_us", "recall_at_10", "ef")
        return {**{name: high[name] for name in names}, "is_bound": high["recall_at_10"] > TARGET}
    low = points[above - 1]
    part = (TARGET - low["recall_at_10"]) / (high["recall_at_10"] - low["recall_at_10"])

    def between(a, b):
        return a + (b - a) * part

    rate = 1 / between(1 / low["queries_per_second"], 1 / high["queries_per_second"])
    cpu = between(low["server_cpu_us"], high["server_cpu_us"])
    return {"queries_per_second": round(rate), "server_cpu_us": round(cpu), "recall_at_10": TARGET, "ef": high["ef"], "is_bound": False}


def told(figures):
    ours = figures.get("shoal", {}).get("queries_per_second")
    print(f"\nqueries/s at recall@{K} {TARGET}, {CLIENTS} clients, more is better")
    for name, figure in figures.items():
        rate = figure["queries_per_second"]
        times = f"x {ours / rate:.2f}" if ours and rate and name != "shoal" else ""
        print(f"  {name:12} {rate or 'not reached':>8}  ef {figure.get('ef')}  {figure.get('server_cpu_us')} us of the server's processor  {times}")


def answer(figures, failed, rows, queries, options):
    ours = figures.get("shoal")
    peers = {name: figure for name, figure in figures.items() if name != "shoal"}
    rates = [figure["queries_per_second"] for figure in peers.values() if figure["queries_per_second"]]
    ratio = ours["queries_per_second"] / max(rates) if ours and rates else None
    best = max(peers, key=lambda name: peers[name]["queries_per_second"] or 0, default=None)
    return {
        "name": "peers",
        "ours": ours,
        "reference": {"name": best, **peers[best]} if best else None,
        "ratio": ratio and round(ratio, 3),
        "systems": peers,
        "not_measured": failed,
        "settings": {
            "rows": len(rows),
            "k": K,
            "m": M,
            "ef_construction": EF_CONSTRUCTION,
            "clients": CLIENTS,
            "seconds": options.seconds,
            "queries": f"beams chosen on the first {len(queries) // 2}, reported on the rest",
        },
        "repeats": options.repeats,
    }


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float32)
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def kth_products(rows, queries):
    """The inner product of each query's K-th neighbour, exact."""
    limits = []
    for first in range(0, len(queries), 100):
        products = queries[first : first + 100] @ rows.T
        limits.append(np.partition(products, -K, axis=1)[:, -K])
    return np.concatenate(limits)


def share(rows, query, limit, ids):
    """Share of the K true neighbours; a row as near as the K-th counts."""
    return float(np.sum(rows[ids[:K]] @ query >= limit - TIE)) / K


if __name__ == "__main__":
    main()
