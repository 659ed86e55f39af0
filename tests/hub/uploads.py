"""Part of the loopback hub that uploads use: accounts, new repositories, stored files and commits."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from .repositories import TEXT, Refusal, account, add_commit, digest


class Uploads:
    """Answers to uploads, for a handler with `hub`, `body`, `_json`, `_send`, `_revision` and `_check_token`."""

    hub: Any
    body: bytes

    def _whoami(self, wanted: dict[str, str], query: dict) -> None:
        if not (token := self._check_token()):
            raise Refusal(401, None, "Invalid username or password.")
        self._json({"type": "user", "name": account(token)})

    def _create(self, wanted: dict[str, str], query: dict) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        self._check_owner(repo)
        folder, url = self.hub.root / f"{asked.get('type', 'model')}s" / repo, {"url": f"{self.hub.endpoint}/{repo}"}
        if folder.exists():
            self._json(url, status=409)
            return
        add_commit(folder, {".gitattributes": b""})
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
        known = {path: digest(commit / path) for path in files if (commit / path).is_file()}
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
        commit = add_commit(self.hub.root / wanted["kind"] / wanted["id"], files)
        url = f"{self.hub.endpoint}/{wanted['id']}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _commit_to_change(self, wanted: dict[str, str]) -> Path:
        """Return the folder of the newest commit, or refuse an account that may not write to the repository."""
        commit = self._revision(wanted)
        self._check_owner(wanted["id"])
        return commit

    def _check_owner(self, repository: str) -> None:
        if not (token := self._check_token()):
            raise Refusal(401, None, "Invalid username or password.")
        if repository.partition("/")[0] != account(token):
            raise Refusal(403, None, f"You don't have the rights to write to {repository}")
