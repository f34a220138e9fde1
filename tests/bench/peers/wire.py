"""Connections that send a prepared request and take the answer's bytes as they are.

Every system is asked like this, so that what a client library costs is in nobody's figure: requests are encoded before
the clock starts, and answers are read to their end and decoded after it has stopped.
"""

import http.client
import socket
import struct

K = 10


class Grpc:
    """A unary method over gRPC, in HTTP/2 frames: one call after the other on one connection."""

    DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
    END_STREAM, END_HEADERS, ACK = 1, 4, 1
    LARGEST = 2**31 - 1

    def __init__(self, address, method):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest, self.stream = b"", 1
        # Windows that no run uses up, so that nothing has to be said of them again.
        window = struct.pack(">HI", 4, self.LARGEST)
        room = struct.pack(">I", self.LARGEST - 65535)
        hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self.socket.sendall(hello + self._frame(self.SETTINGS, 0, 0, window) + self._frame(self.WINDOW_UPDATE, 0, 0, room))
        names = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", address)]
        names += [("te", "trailers"), ("content-type", "application/grpc")]
        # Literals that nobody has to remember.
        self.head = b"".join(b"\0" + self._text(name) + self._text(value) for name, value in names)

    def ask(self, request):
        body = b"\0" + struct.pack(">I", len(request)) + request
        head = self._frame(self.HEADERS, self.END_HEADERS, self.stream, self.head)
        self.socket.sendall(head + self._frame(self.DATA, self.END_STREAM, self.stream, body))
        answer = b""
        while True:
            kind, flags, stream, content = self._read()
            if stream == self.stream and kind == self.DATA:
                answer += content
            if stream == self.stream and kind in (self.DATA, self.HEADERS) and flags & self.END_STREAM:
                break
            if kind in (self.RST_STREAM, self.GOAWAY):
                raise RuntimeError(f"the server ended a call: {content!r}")
            if kind in (self.SETTINGS, self.PING) and not flags & self.ACK:
                self.socket.sendall(self._frame(kind, self.ACK, 0, content if kind == self.PING else b""))
        self.stream += 2
        if len(answer) < 5:
            raise RuntimeError(f"the server refused a call: {content!r}")
        return answer[5:]

    def close(self):
        self.socket.close()

    def _read(self):
        while len(self.rest) < 9 or len(self.rest) < 9 + int.from_bytes(self.rest[:3], "big"):
            self.rest += _some(self.socket)
        size, kind, flags = int.from_bytes(self.rest[:3], "big"), self.rest[3], self.rest[4]
        stream, content = int.from_bytes(self.rest[5:9], "big"), self.rest[9 : 9 + size]
        self.rest = self.rest[9 + size :]
        return kind, flags, stream, content

    @staticmethod
    def _frame(kind, flags, stream, content):
        return len(content).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + content

    @staticmethod
    def _text(text):
        # As it is; none is longer than seven bits tell.
        return bytes([len(text)]) + text.encode()


class Http:
    """A POST of JSON over one HTTP connection."""

    def __init__(self, host, port, path):
        self.connection = http.client.HTTPConnection(host, port)
        self.connection.connect()
        self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.path = path

    def ask(self, request):
        self.connection.request("POST", self.path, request, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}: {body[:300]!r}")
        return body

    def close(self):
        self.connection.close()


class Redis:
    """Redis' protocol; an answer is a count and K ids."""

    #: The array, the count, and two lines an id.
    LINES = 2 + 2 * K

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request):
        self.socket.sendall(request)
        answer = b""
        while answer.count(b"\r\n") < self.LINES:
            if answer.startswith(b"-"):
                raise RuntimeError(answer.decode())
            answer += _some(self.socket)
        return answer

    def close(self):
        self.socket.close()

    @staticmethod
    def command(*words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Postgres:
    """PostgreSQL's protocol, with the question prepared; parameter and answer are binary."""

    def __init__(self, host, port, user, database, settings, question):
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        names = f"user\0{user}\0database\0{database}\0\0".encode()
        self.ask(struct.pack(">ii", len(names) + 8, 196608) + names)
        for setting in settings:
            self.ask(message(b"Q", setting.encode() + b"\0"))
        parse = b"q\0" + question.encode() + b"\0" + struct.pack(">h", 0)
        self.ask(message(b"P", parse) + message(b"S", b""))

    def ask(self, request):
        self.socket.sendall(request)
        answer = b""
        # Ready for the next one, behind everything else.
        while not (answer.endswith((b"I", b"T")) and answer[-6:-1] == b"Z\0\0\0\x05"):
            answer += _some(self.socket)
        if answer.startswith(b"E"):
            raise RuntimeError(answer.decode(errors="replace"))
        return answer

    def close(self):
        self.socket.close()

    @staticmethod
    def question(parameter):
        bind = b"\0q\0" + struct.pack(">hhhi", 1, 1, 1, len(parameter)) + parameter + struct.pack(">hh", 1, 1)
        return message(b"B", bind) + message(b"E", b"\0" + struct.pack(">i", 0)) + message(b"S", b"")

    @staticmethod
    def integers(answer):
        """The first column of each row."""
        at, found = 0, []
        while at < len(answer):
            kind, size = answer[at : at + 1], struct.unpack_from(">i", answer, at + 1)[0]
            if kind == b"D":
                found.append(struct.unpack_from(">i", answer, at + 11)[0])
            at += 1 + size
        return found


def message(kind, body):
    return kind + struct.pack(">i", len(body) + 4) + body


def _some(stream):
    some = stream.recv(1 << 16)
    if not some:
        raise RuntimeError("the server closed the connection")
    return some


def protobuf(*fields):
    """Fields as (number, value): bytes, text, or an unsigned integer."""
    encoded = b""
    for number, value in fields:
        if isinstance(value, int):
            encoded += _varint(number << 3) + _varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            encoded += _varint(number << 3 | 2) + _varint(len(value)) + value
    return encoded


def fields(encoded):
    """The fields of a message, as (number, value); values with a length are bytes."""
    at = 0
    while at < len(encoded):
        key, at = _read_varint(encoded, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(encoded, at)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, at = _read_varint(encoded, at)
            value, at = encoded[at : at + size], at + size
        yield key >> 3, value


def _varint(number):
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def _read_varint(encoded, at):
    number, shift = 0, 0
    while True:
        byte = encoded[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
