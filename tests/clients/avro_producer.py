"""A foreign producer: confluent-kafka and fastavro, and the published Avro schema. Nothing of ours.

Writes points in Avro's single-object encoding, or, with --registry, in Confluent's wire format
with an id that the registry gives. Prints one JSON object: what it wrote and where it went.
"""

import argparse
import io
import json
import struct
import sys
import urllib.request

import fastavro
from confluent_kafka import Producer


def vector(number, dim):
    """The same numbers as the test expects: exact in single precision."""
    return [((number * 31 + at * 7) % 64) / 64.0 + (1.0 if at == 0 else 0.0) for at in range(dim)]


def register(url, subject, schema):
    """The id under which the registry keeps the schema."""
    body = json.dumps({"schema": schema}).encode()
    request = urllib.request.Request(
        f"{url}/subjects/{subject}/versions",
        data=body,
        headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return json.load(answer)["id"]


def fingerprint(schema):
    """CRC-64-AVRO of the schema's canonical form, computed from the Avro specification."""
    empty = 0xC15D213AA4D7A795
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (empty & -(value & 1) & 0xFFFFFFFFFFFFFFFF)
        table.append(value)
    value = empty
    for byte in fastavro.schema.to_parsing_canonical_form(schema).encode():
        value = (value >> 8) ^ table[(value ^ byte) & 0xFF]
    return value


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--bootstrap", required=True)
    options.add_argument("--topic", required=True)
    options.add_argument("--schema", required=True, help="file of the published schema")
    options.add_argument("--registry", help="use Confluent's wire format")
    options.add_argument("--partitioner", help="librdkafka's; left out: its default")
    options.add_argument("--prefix", required=True, help="ids are PREFIX-NUMBER")
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--count", type=int, required=True)
    options.add_argument("--dim", type=int, required=True)
    options.add_argument("--delete", action="store_true", help="write tombstones instead")
    options = options.parse_args()

    with open(options.schema, encoding="utf-8") as file:
        text = file.read()
    # Single-object values carry the fingerprint of the schema as published, defaults and all.
    raw = json.loads(text)
    schema = fastavro.parse_schema(raw)
    if options.registry:
        subject = f"{options.topic}-value"
        start = struct.pack(">bI", 0, register(options.registry, subject, text))
    else:
        start = b"\xc3\x01" + struct.pack("<Q", fingerprint(raw))

    settings = {"bootstrap.servers": options.bootstrap, "linger.ms": 5, "acks": "all"}
    if options.partitioner:
        settings["partitioner"] = options.partitioner
    producer = Producer(settings)
    written = []
    failed = []

    def delivered(error, message):
        if error:
            failed.append(str(error))
        else:
            written.append([message.key().decode(), message.partition(), message.offset()])

    for number in range(options.first, options.first + options.count):
        value = None
        if not options.delete:
            out = io.BytesIO(start)
            out.seek(0, io.SEEK_END)
            point = {
                "vector": vector(number, options.dim),
                "payload": {
                    "number": number,
                    "title": f"title {number}",
                    "score": number / 4.0 + 0.125,
                    "even": number % 2 == 0,
                    "tags": ["python", "avro"],
                },
                "model": "foreign",
            }
            fastavro.schemaless_writer(out, schema, point)
            value = out.getvalue()
        producer.produce(options.topic, key=f"{options.prefix}-{number}", value=value, on_delivery=delivered)
        producer.poll(0)
    producer.flush(60)
    json.dump({"written": written, "failed": failed}, sys.stdout)
    if failed or len(written) != options.count:
        sys.exit(1)


if __name__ == "__main__":
    main()
