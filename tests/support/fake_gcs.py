"""A Google Cloud Storage server with one bucket in memory: the requests of the JSON API that this package makes.

Clients find it by the variables of `FakeGcs.environment`: gcsfs, google-cloud-storage and tensorstore.
"""

import base64
import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec
import google_crc32c

_OBJECT = r"/([^/]+)(?:/(rewriteTo)/b/[^/]+/o/([^/]+))?"
_API = re.compile(rf"(?:/download|/upload)?/storage/v1/b/([^/]+)(?:/(o)(?:{_OBJECT})?)?")


class FakeGcs:
    """The bucket, and the names of the objects that were written and read.

    refuse: the status with which every request is answered, if not 0.
    """

    def __init__(self, bucket: str):
        self.bucket = bucket
        self.objects: dict[str, tuple[bytes, int]] = {}  # content and generation by name
        self.writes: list[str] = []
        self.reads: list[str] = []
        self.refuse = 0
        self.describes_bucket = True  # whether the client has the permission storage.buckets.get
        self.delay = 0.0  # seconds before an answer
        self.lock = threading.Lock()
        self.uploads: dict[str, tuple[str, bytes]] = {}  # resumable uploads in progress
        self._generation = 0
        self.url = ""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the processes that use it."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # of tensorstore
            "FSSPEC_GCS_TOKEN": "anon",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would request the kind of the bucket by gRPC
        }

    def put(self, name: str, content: bytes) -> int:
        """Write an object; returns its generation."""
        with self.lock:
            self._generation += 1
            self.objects[name] = (content, self._generation)
            self.writes.append(name)
            return self._generation

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the objects."""
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def described(self, name: str) -> dict[str, object]:
        """The resource of an object."""
        content, generation = self.objects[name]
        crc = base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return {
            "kind": "storage#object", "id": f"{self.bucket}/{name}/{generation}", "name": name, "bucket": self.bucket,
            "size": str(len(content)), "generation": str(generation), "metageneration": "1", "etag": str(generation),
            "updated": now, "timeCreated": now, "contentType": "application/octet-stream", "storageClass": "STANDARD",
            "crc32c": crc,
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FakeGcs

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes | dict[str, object] = b"", **headers: str) -> None:
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        kind = "application/json" if isinstance(body, dict) else "application/octet-stream"
        lines = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in (lines | {name.replace("_", "-"): value for name, value in headers.items()}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"code": status, "message": message}})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _handle(self) -> None:
        body, parts = self._body(), urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        store, found = self.store, _API.fullmatch(parts.path)
        time.sleep(store.delay)
        if store.refuse:
            return self._error(store.refuse, "refused by the test")
        if not found:
            return self._error(501, f"the fake does not support {self.command} {parts.path}")
        bucket, objects, name, rewrite, target = (text and unquote(text) for text in found.groups())
        if bucket != store.bucket:
            return self._error(404, "The specified bucket does not exist.")
        if not objects and not store.describes_bucket:
            return self._error(403, "storage.buckets.get denied")
        if not objects:
            described: dict[str, object] = {"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "US"}
            return self._answer(200, described)
        if parts.path.startswith("/upload"):
            return self._upload(query, body)
        if not name:
            return self._list(query)
        if name not in store.objects:
            return self._error(404, f"No such object: {bucket}/{name}")
        if self.command == "DELETE":
            with store.lock:
                del store.objects[name]
            return self._answer(204)
        if rewrite:
            store.put(str(target), store.objects[name][0])
            return self._answer(200, {"done": True, "resource": store.described(str(target))})
        if query.get("alt") == "media":
            return self._read(name)
        return self._answer(200, store.described(name))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _read(self, name: str) -> None:
        self.store.reads.append(name)
        content, generation = self.store.objects[name]
        headers = {"x_goog_generation": str(generation), "ETag": str(generation)}
        ranged = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not ranged:
            return self._answer(200, content, **headers)
        first, last = ranged.groups()
        begin = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if begin >= len(content):
            return self._answer(416, b"", Content_Range=f"bytes */{len(content)}")
        headers["Content_Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        return self._answer(206, content[begin:end], **headers)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        begin, end = query.get("startOffset", ""), query.get("endOffset", "")
        items, prefixes = [], set()
        for name in self.store.names(prefix):
            if name < begin or (end and name >= end):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found:
                prefixes.add(prefix + head + found)
            else:
                items.append(self.store.described(name))
        return self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _upload(self, query: dict[str, str], body: bytes) -> None:
        kind, store = query.get("uploadType"), self.store
        if "upload_id" in query:
            return self._resume(query["upload_id"], body)
        if kind == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            with store.lock:
                upload = str(len(store.uploads))
                store.uploads[upload] = (name, b"")
            return self._answer(200, Location=f"{store.url}/upload/storage/v1/b/{store.bucket}/o?upload_id={upload}")
        if kind == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])
            assert boundary
            description, content = (
                part.partition(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n")[2]
                for part in body.split(b"--" + boundary[1].encode())[1:3]
            )
            query["name"], body = json.loads(description)["name"], content.removesuffix(b"\n").removesuffix(b"\r")
        expected = query.get("ifGenerationMatch")
        if expected is not None and int(expected) != store.objects.get(query["name"], (b"", 0))[1]:
            return self._error(412, "At least one of the pre-conditions you specified did not hold.")
        store.put(query["name"], body)
        return self._answer(200, store.described(query["name"]))

    def _resume(self, upload: str, body: bytes) -> None:
        store = self.store
        name, content = store.uploads[upload]
        content += body
        store.uploads[upload] = (name, content)
        if self.headers.get("Content-Range", "").endswith("/*"):
            return self._answer(308, Range=f"bytes=0-{len(content) - 1}")
        store.put(name, content)
        return self._answer(200, store.described(name))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # gcsfs closes connections whose answer it no longer needs
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextlib.contextmanager
def serving(bucket: str) -> Iterator[FakeGcs]:
    """A server on a free port of this machine."""
    store = FakeGcs(bucket)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(environment: dict[str, str], then: Callable[[], None] | None = None) -> None:
    """Make this process use the server as Cloud Storage; call before gcsfs is imported."""
    os.environ.update(environment)
    fsspec.config.set_conf_env(fsspec.config.conf)
    if then is not None:
        then()
