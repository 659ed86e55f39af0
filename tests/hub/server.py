"""Loopback server with the part of the Hugging Face hub's HTTP interface that downloads and uploads use, over a folder.

A repository is a folder `<root>/{models,datasets}/<owner>/<name>/` with one folder per commit; a symbolic link to a
commit is a branch or a tag. As on the hub, text files are served by a relative redirect, and other files by a redirect
to another host. That host is `localhost` here, while the hub is 127.0.0.1. An account may write to the repositories of
its own name, in commits that contain text files; other files are uploaded to the other host first. The Xet protocol is
missing: without its headers, clients download by HTTP, and with HF_HUB_DISABLE_XET=1 they upload by HTTP.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .repositories import TEXT, Refusal, digest, entry
from .uploads import Uploads

MEMBER, STRANGER = "hf_member", "hf_stranger"  # tokens of accounts with and without access to gated repositories
PAGE = 20  # entries of a page of a listing
PIECE = 4096  # bytes that a slow download sends at a time

_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_ID}"
ROUTES = {
    "whoami": re.compile("/api/whoami-v2"),
    "create": re.compile("/api/repos/create"),
    "validate": re.compile("/api/validate-yaml"),
    "preupload": re.compile(rf"{_API}/preupload/(?P<revision>[^/]+)"),
    "batch": re.compile(rf"/{_ID}\.git/info/lfs/objects/batch"),
    "store": re.compile(r"/stored/(?P<id>[\w.-]+/[\w.-]+)/(?P<digest>[0-9a-f]{64})"),
    "commit": re.compile(rf"{_API}/commit/(?P<revision>[^/]+)"),
    "auth": re.compile(rf"{_API}/auth-check"),
    "info": re.compile(rf"{_API}(/revision/(?P<revision>[^/]+))?"),
    "tree": re.compile(rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?"),
    "paths": re.compile(rf"{_API}/paths-info/(?P<revision>[^/]+)"),
    "resolve": re.compile(rf"(/(?P<kind>datasets))?/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    "content": re.compile(
        rf"/(api/resolve-cache|cdn)/(?P<kind>models|datasets)/{_ID}/(?P<revision>[^/]+)/(?P<path>.+)"
    ),
}


@dataclass(frozen=True)
class Request:
    """Request that the server has received."""

    method: str
    host: str
    path: str
    authorization: str | None
    range: str | None


@dataclass
class Hub:
    """State of a server.

    Attributes:
        root: Folder of the repositories.
        gated: Ids of gated repositories.
        faults: Behaviours of the next downloads of a file, by `<id>/<path>`: `cut` closes the connection in the middle,
            `drop` before the first byte, `short` sends half of the bytes that the hub has announced, `slow` pauses
            between pieces, a number is a status, and `whole` is no fault. Statuses of uploads are by `<id>/upload`.
        stored: Uploaded files by their SHA-256, which a commit names.
        requests: Requests so far.
        port: Port of 127.0.0.1.
        close: Function that stops the server.
    """

    root: Path
    gated: set[str] = field(default_factory=set)
    faults: dict[str, list[str | int]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    close: Callable[[], None] = lambda: None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def downloads(self, repo: str, name: str) -> list[Request]:
        """Return the requests for the content of a file."""
        routes = ((one, ROUTES["content"].fullmatch(one.path)) for one in self.requests if one.method == "GET")
        return [one for one, found in routes if found and (found["id"], found["path"]) == (repo, name)]


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve the repositories of a folder on a free port of the loopback interface."""
    hub = Hub(root)
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.port = server.server_port
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    hub.close = close
    thread.start()
    try:
        yield hub
    finally:
        close()


class Server(ThreadingHTTPServer):
    """Server with one thread for each connection."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing, since a client that stops or is killed closes its connections."""


class Handler(Uploads, BaseHTTPRequestHandler):
    """Answers of the hub, and of the content host."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        names = ("Host", "Authorization", "Range")
        host, authorization, span = (self.headers.get(name) for name in names)
        self.hub.requests.append(Request(self.command, host or "", path, authorization, span))
        try:
            for name, route in ROUTES.items():
                # A branch may hold a slash, which is quoted in the address.
                if found := route.fullmatch(parts.path):
                    wanted = {key: unquote(value) for key, value in found.groupdict().items() if value}
                    getattr(self, f"_{name}")(wanted, query)
                    return
            raise Refusal(404, None, f"no such address: {path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            self._send(refusal.status, headers | {"X-Error-Message": refusal.message})

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _info(self, wanted: dict[str, str], query: dict) -> None:
        commit = self._revision(wanted)
        files = [str(path.relative_to(commit)) for path in sorted(commit.rglob("*")) if path.is_file()]
        gated = "manual" if wanted["id"] in self.hub.gated else False
        names = {"id": wanted["id"], "sha": commit.name, "gated": gated, "private": False, "disabled": False}
        self._json(names | {"tags": [], "siblings": [{"rfilename": file} for file in files]})

    def _auth(self, wanted: dict[str, str], query: dict) -> None:
        self._revision(wanted)
        self._check_access(wanted["id"])
        self._send(200, {})

    def _tree(self, wanted: dict[str, str], query: dict) -> None:
        commit = self._revision(wanted)
        folder = commit / wanted.get("path", "")
        if not folder.is_dir():
            raise Refusal(404, "EntryNotFound", "Entry not found")
        paths = sorted(folder.rglob("*") if query.get("recursive", [""])[0].lower() == "true" else folder.iterdir())
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(paths):
            options = "&".join(f"{key}={quote(value[0])}" for key, value in query.items() if key != "cursor")
            following = f"{self.hub.endpoint}{urlsplit(self.path).path}?{options}&cursor={start + PAGE}"
            headers["Link"] = f'<{following}>; rel="next"'
        self._json([entry(path, commit) for path in paths[start : start + PAGE]], headers)

    def _paths(self, wanted: dict[str, str], query: dict) -> None:
        commit = self._revision(wanted)
        paths = [commit / path for path in parse_qs(self.body.decode()).get("paths", [])]
        self._json([entry(path, commit) for path in paths if path.exists()])

    def _resolve(self, wanted: dict[str, str], query: dict) -> None:
        commit = self._revision(wanted)
        self._check_access(wanted["id"])
        path = commit / wanted["path"]
        headers = {"X-Repo-Commit": commit.name}
        if not path.is_file():
            raise Refusal(404, "EntryNotFound", "Entry not found")
        place = quote(f"{wanted.get('kind', 'models')}/{wanted['id']}/{commit.name}/{wanted['path']}")
        if path.suffix in TEXT:
            self._send(307, headers | {"Location": f"/api/resolve-cache/{place}"})
        else:
            linked = {"X-Linked-Size": str(path.stat().st_size), "X-Linked-ETag": f'"{digest(path)}"'}
            self._send(302, headers | linked | {"Location": f"http://localhost:{self.hub.port}/cdn/{place}"})

    def _content(self, wanted: dict[str, str], query: dict) -> None:
        commit = self._revision(wanted)
        if self.path.startswith("/api/"):
            self._check_access(wanted["id"])
        path = commit / wanted["path"]
        content = path.read_bytes()
        faults = self.hub.faults.get(f"{wanted['id']}/{wanted['path']}") if self.command == "GET" else None
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            raise Refusal(fault, None, "fault of the test server")
        headers = {"X-Repo-Commit": commit.name, "ETag": f'"{digest(path)}"', "Accept-Ranges": "bytes"}
        status, size = 200, len(content)
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), int(span[2] or size - 1)
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if fault == "short":
            content = content[: len(content) // 2]
        self._send(status, headers, content, fault)

    def _revision(self, wanted: dict[str, str]) -> Path:
        """Return the folder of a commit, or refuse a repository or revision that does not exist."""
        token = self._check_token()
        repository = self.hub.root / wanted.get("kind", "models") / wanted["id"]
        if not repository.is_dir():
            if token is None:  # the hub does not tell strangers which private repositories exist
                raise Refusal(401, None, "Invalid username or password.")
            raise Refusal(404, "RepoNotFound", "Repository not found")
        revision = repository / wanted.get("revision", "main")
        if not revision.is_dir():
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision.name}")
        return revision.resolve()

    def _check_token(self) -> str | None:
        """Return the token of the request, or refuse one that no account has."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme and token not in (MEMBER, STRANGER):
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return token or None

    def _check_access(self, repository: str) -> None:
        token = self._check_token()
        if repository in self.hub.gated and token != MEMBER:
            raise Refusal(403 if token else 401, "GatedRepo", f"Access to {repository} is restricted.")

    def _json(self, value: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self._send(status, (headers or {}) | {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes = b"", fault: str | int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("cut", "drop"):
            self.close_connection = True
            content = content[: len(content) // 2] if fault == "cut" else b""
        pieces = range(0, len(content), PIECE) if fault == "slow" else [0]
        for start in pieces:
            self.wfile.write(content[start : start + PIECE] if fault == "slow" else content)
            self.wfile.flush()
            time.sleep(0.01 if fault == "slow" else 0)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
