"""An object store in memory under the address gs://, as etils and fsspec see one, and as array_record does by HTTP."""

import functools
import os
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Has folders only where objects lie, counts versions of objects, and notes what is asked of it."""

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self) -> None:
        super().__init__(global_store=False)
        self.read_objects: list[str] = []
        self.written: list[str] = []
        self.ranges: list[tuple[str, str]] = []  # of objects that were read by HTTP
        self.refused = ""  # what it says to everybody, where it is set
        self.refuse_writing = ""  # what it says to who writes

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return "/" + str(path).removeprefix("gs://").strip("/")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._refuse()
        facts = super().info(path, **options)
        return facts | ({"generation": str(facts["created"])} if facts["type"] == "file" else {})

    def cat_file(self, path: str, *rest: Any, **options: Any) -> bytes:
        self.read_objects.append(path)
        return super().cat_file(path, *rest, **options)

    def pipe_file(self, path: str, value: bytes, *rest: Any, **options: Any) -> None:
        self._refuse()
        if self.refuse_writing:
            raise PermissionError(self.refuse_writing)
        self.written.append(path)
        super().pipe_file(path, value, *rest, **options)

    def _refuse(self) -> None:
        if self.refused:
            raise RuntimeError(self.refused)


def install(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The store behind gs:// for the time of a test."""
    bucket = Bucket()
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: bucket)
    return bucket


class _Objects(BaseHTTPRequestHandler):
    """Answers to what is read of objects, or of their parts, as Google's store does."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is sent at once, or the client waits 40 ms for its second half

    def do_GET(self) -> None:
        match = re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/?]+)\?alt=media", self.path)
        assert match is not None, self.path
        path = f"gs://{match[1]}/{urllib.parse.unquote(match[2])}"
        first, last = self.headers["Range"][6:].split("-")
        store: Bucket | None = self.server.store
        assert store is not None
        if not store.exists(path):
            self._answer(404, b"there is no such object")
            return
        content = store.cat_file(path)
        start = int(first) if first else -int(last)
        store.ranges.append((path, self.headers["Range"]))
        self._answer(206, content[start : int(last) + 1 if first and last else None])

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    store: Bucket | None = None

    def handle_error(self, *request: Any) -> None:
        """A reader that has what it wants goes in the middle of an answer."""


@functools.cache
def _server(process: int) -> _Server:
    """One for all tests of a process: the client in array_record may keep the address that it was given first."""
    server = _Server(("127.0.0.1", 0), _Objects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def serve(store: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets array_record, whose reader asks by HTTP, read from the store for the time of a test."""
    server = _server(os.getpid())
    monkeypatch.setattr(server, "store", store)
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
