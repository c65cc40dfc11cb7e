"""A stand-in for the Hub on this machine's loopback: enough of its interface to create, push to and pull from repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Its commits in order: identifier, message, and all the files of that state by path."""

    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=lambda: [("0" * 40, "initial", {})])

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in ("main", "HEAD"):
            revision = self.commits[-1][0]
        return next(((oid, files) for oid, _, files in self.commits if oid == revision), None)

    def commit(self, lines: list[dict[str, Any]]) -> str:
        _, _, files = self.commits[-1]
        files, message = dict(files), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise ValueError(f"the stand-in knows no {line['key']}")
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, message, files))
        return oid


class Hub(ThreadingHTTPServer):
    """The server, with what it holds. Only requests with `token` may write."""

    daemon_threads = True
    token = "hf_of_the_stand_in"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.lock = threading.Lock()
        self.unknown: list[str] = []  # requests that it could not answer

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Any) -> dict[str, str]:
        """For a process that is to take it for the Hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            if path == "/api/validate-yaml":
                return self._json({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {self.server.token}":
                return self._json({"error": "a token is needed"}, 401)
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                status = 409 if name in self.server.repositories else 200
                self.server.repositories.setdefault(name, Repository())
                return self._json({"url": f"{self.server.endpoint}/{name}"}, status)
            name, action = self._api(path)
            if name and action[0] == "preupload":
                answer = {"uploadMode": "regular", "shouldIgnore": False}
                return self._json({"files": [{"path": one["path"], **answer} for one in json.loads(body)["files"]]})
            if name and action[0] == "commit":
                oid = self.server.repositories[name].commit([json.loads(line) for line in body.splitlines()])
                url = f"{self.server.endpoint}/{name}/commit/{oid}"
                return self._json({"commitUrl": url, "commitOid": oid, "success": True})
            self._missing("EntryNotFound")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            if path.startswith("/api/models/"):
                return self._describe(*self._api(path))
            owner, _, rest = path[1:].partition("/")
            name, _, rest = rest.partition("/resolve/")
            revision, _, file = rest.partition("/")
            repository = self.server.repositories.get(f"{owner}/{name}")
            state = repository.at(revision) if repository else None
            if state is None:
                return self._missing("RevisionNotFound" if repository else "RepoNotFound")
            oid, files = state
            if file not in files:
                return self._missing("EntryNotFound", oid)
            headers = {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"', "X-Repo-Commit": oid}
            self._answer(files[file], 200, headers)

    do_HEAD = do_GET

    def _api(self, path: str) -> tuple[str, list[str]]:
        """The repository that a path below /api/models names, and what follows."""
        parts = path.removeprefix("/api/models/").split("/")
        name = "/".join(parts[:2])
        return (name, parts[2:]) if name in self.server.repositories else ("", parts)

    def _describe(self, name: str, action: list[str]) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            return self._missing("RepoNotFound")
        state = repository.at(action[1] if len(action) > 1 else "main")
        if state is None:
            return self._missing("RevisionNotFound")
        oid, files = state
        if action[:1] == ["tree"]:
            folder = "/".join(action[2:])
            listed = {path: content for path, content in files.items() if path.startswith(folder and f"{folder}/")}
            if folder and not listed:
                return self._missing("EntryNotFound", oid)
            digest = {path: hashlib.sha1(content).hexdigest() for path, content in listed.items()}
            entries = [{"type": "file", "path": p, "size": len(c), "oid": digest[p]} for p, c in listed.items()]
            return self._json(entries)
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "modelId": name, "sha": oid, "siblings": siblings, "tags": [], "private": False}
        self._json(about)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _missing(self, code: str, oid: str | None = None) -> None:
        self.server.unknown.append(f"{self.command} {self.path}")
        self._answer(b"", 404, {"X-Error-Code": code} | ({"X-Repo-Commit": oid} if oid else {}))

    def _answer(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""
