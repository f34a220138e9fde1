"""The XML API of Google Cloud Storage, as far as it is S3's, in memory, for as long as standard input is open.

That API differs from S3's in the names of some headers: what makes a request conditional, and the number of an
object's version. Those are translated, and moto's S3 does the rest. Signatures are not looked at.
Prints its address as one line. Buckets named on the command line are there.
"""

import logging
import sys
import threading
import urllib.request
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


# Whoever asks: anonymous writes would be refused.
SOMEBODY = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"


class Translated:
    """Requests to Google's API as requests to S3's, and their answers as Google's."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse):
        environ["HTTP_AUTHORIZATION"] = SOMEBODY
        generation = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
        if generation == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        elif generation is not None:
            raise ValueError(f"condition on generation {generation}: only that there is no object is known here")

        def start(status, headers, *rest):
            return start_response(status, [*headers, ("x-goog-generation", "1")], *rest)

        return self.app(environ, start)


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Translated(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for bucket in sys.argv[1:]:
        urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")).close()
    print(address, flush=True)
    # Whoever started us ends, however it ends: then so do we.
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
