"""The reference libraries in one long-lived process: a request a line on standard input, an answer a line on standard output.

`tests/bench/rig` starts it, so that ours and the references take turns within one run. Every line is one JSON object.
It measures its own seconds and processor time around the library's call alone; whether a neighbour is right is judged
by the one who asks, by the same measure for all sides.
"""

import json
import sys
import time
from importlib import metadata

import faiss
import hnswlib
import numpy as np


class Hnswlib:
    version = metadata.version("hnswlib")

    def __init__(self, rows, m, ef_construction, threads):
        self.index = hnswlib.Index("ip", rows.shape[1])
        self.index.init_index(len(rows), ef_construction=ef_construction, M=m)
        self.index.add_items(rows, num_threads=threads)

    def search(self, queries, k, ef, threads):
        self.index.set_ef(ef)
        return self.index.knn_query(queries, k, num_threads=threads)[0]


class Faiss:
    version = metadata.version("faiss-cpu")

    def __init__(self, rows, m, ef_construction, threads):
        faiss.omp_set_num_threads(threads)
        self.index = faiss.IndexHNSWFlat(rows.shape[1], m, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = ef_construction
        self.index.add(rows)

    def search(self, queries, k, ef, threads):
        faiss.omp_set_num_threads(threads)
        self.index.hnsw.efSearch = ef
        return self.index.search(queries, k)[1]


LIBRARIES = {"hnswlib": Hnswlib, "faiss": Faiss}


class Worker:
    def __init__(self):
        self.rows = self.queries = None
        self.built = {}

    def load(self, data, rows):
        self.rows = unit(np.load(f"{data}/w_base_f16.npy", mmap_mode="r")[:rows])
        self.queries = unit(np.load(f"{data}/w_queries_f16.npy"))
        return {"rows": len(self.rows), "versions": {name: one.version for name, one in LIBRARIES.items()}}

    def build(self, library, m, ef_construction, threads):
        self.built.pop(library, None)
        wall, cpu = time.perf_counter(), time.process_time()
        self.built[library] = LIBRARIES[library](self.rows, m, ef_construction, threads)
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}

    def search(self, library, first, end, k, ef, threads, seconds):
        """Asks queries `first` to `end` over and over, for at least `seconds`; the neighbours are those of one pass."""
        index, queries, passes = self.built[library], self.queries[first:end], 0
        wall, cpu = time.perf_counter(), time.process_time()
        while True:
            found = index.search(queries, k, ef, threads)
            passes += 1
            elapsed = time.perf_counter() - wall
            if elapsed >= seconds:
                break
        cpu = time.process_time() - cpu
        # A library that finds too few says -1: no row.
        found = np.where(found < 0, len(self.rows), found)
        return {"queries": passes * len(queries), "seconds": elapsed, "cpu_seconds": cpu, "rows": found.tolist()}

    def themselves(self, library, every, ef, threads):
        """The nearest row of each `every`-th row."""
        asked = np.arange(0, len(self.rows), every)
        found = self.built[library].search(self.rows[asked], 1, ef, threads)
        found = np.where(found < 0, len(self.rows), found)
        return {"asked": asked.tolist(), "found": found[:, 0].tolist()}


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float32)
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def main():
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
