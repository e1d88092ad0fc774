"""The part of the Hugging Face hub's HTTP protocol that an upload needs, on this machine."""

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

TOKEN = "hf_of_the_test"


class FakeHub(http.server.ThreadingHTTPServer):
    """files: what was committed, by path. private: of the model, None until it is created. status: answered to all."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}  # large files by their hash, before the commit that names them
        self.private: bool | None = None
        self.status = 200
        self.yaml_errors: list[dict[str, str]] = []  # of the card's metadata

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, fields: Any, status: int = 200, **headers: str) -> None:
        content = json.dumps(fields).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _refused(self) -> bool:
        status = self.server.status
        if status == 200 and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 401
        if status != 200:
            self._answer({"error": "refused"}, status)
        return status != 200

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path == "/api/whoami-v2":
            self._answer({"name": "owner", "type": "user", "auth": {}})
        elif self.server.private is None:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        else:
            self._answer({"id": "owner/student", "sha": "0" * 40, "siblings": []})

    def do_PUT(self) -> None:  # to an address that is signed, so without the token
        self.server.stored[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return
        if self.path == "/api/repos/create":
            self.server.private = json.loads(body).get("visibility") == "private"
            self._answer({"url": f"{self.server.url}/owner/student"})
        elif self.path == "/api/validate-yaml":
            errors = self.server.yaml_errors
            self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif "/preupload/" in self.path:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith("tensors") else "regular"}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.server.url}/store/{each['oid']}"}}
            self._answer({"objects": objects})
        else:
            assert "/commit/" in self.path, self.path
            self._commit([json.loads(line) for line in body.splitlines()])

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.stored[value["oid"]]
        url = f"{self.server.url}/owner/student/commit/{'1' * 40}"
        self._answer({"commitUrl": url, "commitOid": "1" * 40})


@contextlib.contextmanager
def running() -> Iterator[FakeHub]:
    """A hub that answers until the context ends."""
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
