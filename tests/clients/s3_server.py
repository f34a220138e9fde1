"""An S3 API with conditional puts, in memory, for as long as standard input is open.

Prints its address as one line. Buckets named on the command line are there.
"""

import logging
import sys

import boto3
from moto.server import ThreadedMotoServer


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    for bucket in sys.argv[1:]:
        client.create_bucket(Bucket=bucket)
    print(address, flush=True)
    # Whoever started us ends, however it ends: then so do we.
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
