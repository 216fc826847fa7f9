"""A hub on this machine: as much of the Hugging Face hub's HTTP interface as `huggingface_hub` asks for.

Repositories are dictionaries of files by commit; files with the endings below are kept as large ones (LFS), known by
SHA-256, as on the hub. Everything that was asked is recorded, so that a test can say what was downloaded.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".msgpack", ".h5", ".pt")


class Repository:
    """One model repository: the files of each commit, and the commit of each branch and tag."""

    def __init__(self, files: Mapping[str, bytes], commit: str | None = None) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.references: dict[str, str] = {}
        self.add(files, commit)

    def add(self, files: Mapping[str, bytes], commit: str | None = None, reference: str = "main") -> str:
        """Adds a commit, and moves a branch to it."""
        commit = commit or hashlib.sha1(repr(sorted(files)).encode() + str(len(self.commits)).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.references[reference] = commit
        return commit


class Hub:
    """The hub's content and what was asked of it.

    Attributes:
      repositories: by "owner/name".
      gated: names whose terms nobody accepted; private: names that are there for a token alone.
      created: names that clients made, and whether as private.
      break_at: the file that ends in it breaks off after so many bytes, once.
      requests: "METHOD path" of every request.
      sent: how many bytes of each file were sent, by "owner/name/file".
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.created: dict[str, bool] = {}
        self.break_at: dict[str, int] = {}
        self.requests: list[str] = []
        self.sent: dict[str, int] = {}
        self.large: dict[str, bytes] = {}
        self.endpoint = ""

    def downloaded(self) -> list[str]:
        """The names of the files that were sent, without their repositories."""
        return sorted({path.split("/", 2)[2] for path, count in self.sent.items() if count})


@contextmanager
def serve() -> Iterator[Hub]:
    """Runs a hub on a port of this machine for as long as the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is sent at once, or the client waits 40 ms for its second half

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._path()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            self._info(match[1], unquote(match[3] or "main"), is_tree=match[2] == "tree")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], unquote(match[2]), unquote(match[3]))
        else:
            self._answer(404, {"error": f"no {path}"})

    do_HEAD = do_GET

    def _info(self, name: str, revision: str, *, is_tree: bool) -> None:
        """A commit with its files, or these alone."""
        commit = self._commit(name, revision)
        if commit is None:
            return
        listed = []
        for file, content in sorted(self.hub.repositories[name].commits[commit].items()):
            blob = hashlib.sha1(content).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": file, "rfilename": file, "size": len(content)}
            entry |= {"oid": blob, "blobId": blob}
            if file.endswith(LARGE):
                sha = _sha256(content)
                entry["lfs"] = {"oid": sha, "sha256": sha, "size": len(content), "pointerSize": 134}
            listed.append(entry)
        whole = {"id": name, "modelId": name, "sha": commit, "siblings": listed, "tags": []}
        self._answer(200, listed if is_tree else whole)

    def _file(self, name: str, revision: str, file: str) -> None:
        commit = self._commit(name, revision)
        if commit is None:
            return None
        content = self.hub.repositories[name].commits[commit].get(file)
        if name in self.hub.gated:
            return self._answer(403, {"error": "gated"}, **{"X-Error-Code": "GatedRepo"})
        if content is None:
            return self._answer(404, {}, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        large = file.endswith(LARGE)
        tag = _sha256(content) if large else hashlib.sha1(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        whole = f"{name}/{file}"
        end = next((self.hub.break_at.pop(key) for key in [*self.hub.break_at] if whole.endswith(key)), None)
        part = content[start : len(content) if end is None else end]
        self.wfile.write(part)
        self.hub.sent[whole] = self.hub.sent.get(whole, 0) + len(part)
        if end is not None:  # as a network that is gone: a reset, not an end
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        return None

    def do_POST(self) -> None:
        path = self._path()
        body = self._body()
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['organization'] or 'me'}/{request['name']}"
            if name in self.hub.private:
                return self._answer(403, {"error": "you do not have the rights"})
            if name in self.hub.repositories:
                return self._answer(409, {"url": f"{self.hub.endpoint}/{name}"})
            self.hub.repositories[name] = Repository({".gitattributes": b""})
            # Before and since version 2 of the client.
            self.hub.created[name] = request.get("private") is True or request.get("visibility") == "private"
            self._answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
            self._answer(
                200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
            )
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.hub.endpoint}/upload/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit_files(match[1], body)
        else:
            self._answer(404, {"error": f"no {path}"})
        return None

    def do_PUT(self) -> None:
        content = self._body()
        if self._path() != f"/upload/{_sha256(content)}":
            return self._answer(400, {"error": "another hash"})
        self.hub.large[_sha256(content)] = content
        return self._answer(200, {})

    def _commit_files(self, name: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.commits[repository.references["main"]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = repository.add(files)
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _commit(self, name: str, revision: str) -> str | None:
        """The commit of a revision; `None` where the answer, an error, was given."""
        repository = self.hub.repositories.get(name)
        if repository is None or (name in self.hub.private and "Authorization" not in self.headers):
            self._answer(401, {"error": "no such repository"}, **{"X-Error-Code": "RepoNotFound"})
            return None
        commit = repository.references.get(revision, revision)
        if commit not in repository.commits:
            self._answer(404, {"error": "no such revision"}, **{"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _path(self) -> str:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, content: Any, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
