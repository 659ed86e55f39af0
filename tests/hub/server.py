"""Loopback server with the part of the Hugging Face hub's HTTP interface that downloads and uploads use, over a folder.

A repository is a folder `<root>/{models,datasets}/<owner>/<name>/` with one folder per commit; a symbolic link to a
commit is a branch or a tag. As on the hub, text files are served by a relative redirect, and other files by a redirect
to another host. That host is `localhost` here, while the hub is 127.0.0.1. An account may write to the repositories of
its own name, in commits that contain text files; other files are uploaded to the other host first. The Xet protocol is
missing: without its headers, clients download by HTTP, and with HF_HUB_DISABLE_XET=1 they upload by HTTP.
"""

from __future__ import annotations

import base64
import hashlib
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

import yaml

MEMBER, STRANGER = "hf_member", "hf_stranger"  # tokens of accounts with and without access to gated repositories
TEXT = (".json", ".md", ".txt", ".yaml")
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


class Refusal(Exception):
    """Answer of the hub with an error status."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


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


class Handler(BaseHTTPRequestHandler):
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

    def _whoami(self, wanted: dict[str, str], query: dict) -> None:
        if not (token := self._check_token()):
            raise Refusal(401, None, "Invalid username or password.")
        self._json({"type": "user", "name": _account(token)})

    def _create(self, wanted: dict[str, str], query: dict) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        self._check_owner(repo)
        folder, url = self.hub.root / f"{asked.get('type', 'model')}s" / repo, {"url": f"{self.hub.endpoint}/{repo}"}
        if folder.exists():
            self._json(url, status=409)
            return
        _add_commit(folder, {".gitattributes": b""})
        self._json(url)

    def _validate(self, wanted: dict[str, str], query: dict) -> None:
        _, _, rest = json.loads(self.body)["content"].partition("---\n")
        try:
            assert isinstance(yaml.safe_load(rest.partition("\n---\n")[0]), dict)
        except (AssertionError, yaml.YAMLError) as error:
            self._json({"errors": [{"message": f"{error}"}], "warnings": []}, status=400)
        else:
            self._json({"errors": [], "warnings": []})

    def _preupload(self, wanted: dict[str, str], query: dict) -> None:
        commit = self._commit_to_change(wanted)
        files = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "regular" if Path(path).suffix in TEXT else "lfs" for path in files}
        known = {path: _digest(commit / path) for path in files if (commit / path).is_file()}
        self._json(
            {
                "files": [
                    {"path": path, "uploadMode": modes[path], "shouldIgnore": False, "oid": known.get(path)}
                    for path in files
                ]
            }
        )

    def _batch(self, wanted: dict[str, str], query: dict) -> None:
        self._commit_to_change(wanted)
        objects = json.loads(self.body)["objects"]
        place = f"http://localhost:{self.hub.port}/stored/{wanted['id']}"
        for one in objects:
            one["actions"] = {"upload": {"href": f"{place}/{one['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, wanted: dict[str, str], query: dict) -> None:
        faults = self.hub.faults.get(f"{wanted['id']}/upload")
        if faults and isinstance(fault := faults.pop(0), int):
            raise Refusal(fault, None, "fault of the test server")
        if hashlib.sha256(self.body).hexdigest() != wanted["digest"]:
            raise Refusal(400, None, "the content does not have the announced checksum")
        self.hub.stored[wanted["digest"]] = self.body
        self._send(200, {})

    def _commit(self, wanted: dict[str, str], query: dict) -> None:
        before = self._commit_to_change(wanted)
        files = {str(path.relative_to(before)): path.read_bytes() for path in before.rglob("*") if path.is_file()}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        commit = _add_commit(self.hub.root / wanted["kind"] / wanted["id"], files)
        url = f"{self.hub.endpoint}/{wanted['id']}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

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
        self._json([_entry(path, commit) for path in paths[start : start + PAGE]], headers)

    def _paths(self, wanted: dict[str, str], query: dict) -> None:
        commit = self._revision(wanted)
        paths = [commit / path for path in parse_qs(self.body.decode()).get("paths", [])]
        self._json([_entry(path, commit) for path in paths if path.exists()])

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
            linked = {"X-Linked-Size": str(path.stat().st_size), "X-Linked-ETag": f'"{_digest(path)}"'}
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
        headers = {"X-Repo-Commit": commit.name, "ETag": f'"{_digest(path)}"', "Accept-Ranges": "bytes"}
        status, size = 200, len(content)
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), int(span[2] or size - 1)
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if fault == "short":
            content = content[: len(content) // 2]
        self._send(status, headers, content, fault)

    def _commit_to_change(self, wanted: dict[str, str]) -> Path:
        """Return the folder of the newest commit, or refuse an account that may not write to the repository."""
        commit = self._revision(wanted)
        self._check_owner(wanted["id"])
        return commit

    def _check_owner(self, repository: str) -> None:
        if not (token := self._check_token()):
            raise Refusal(401, None, "Invalid username or password.")
        if repository.partition("/")[0] != _account(token):
            raise Refusal(403, None, f"You don't have the rights to write to {repository}")

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


def _account(token: str) -> str:
    """Return the name of an account, which is also that of its namespace."""
    return token.removeprefix("hf_")


def _add_commit(repository: Path, files: dict[str, bytes]) -> str:
    """Write a commit with exactly these files, make it the newest of `main`, and return its name."""
    commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    for name, content in files.items():
        path = repository / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (repository / "main").unlink(missing_ok=True)
    (repository / "main").symlink_to(commit)
    return commit


def _entry(path: Path, commit: Path) -> dict[str, Any]:
    """Return the description of a file or folder in a listing."""
    name = str(path.relative_to(commit))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    found = {"type": "file", "path": name, "oid": _digest(path), "size": path.stat().st_size}
    if path.suffix not in TEXT:
        found["lfs"] = {"oid": _digest(path), "size": path.stat().st_size, "pointerSize": 134}
    return found


def _digest(path: Path) -> str:
    """Return the name of a file's content: its git blob, or the checksum of a large file."""
    content = path.read_bytes()
    if path.suffix in TEXT:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()
