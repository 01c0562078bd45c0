"""A hub on this machine: the few answers of the Hugging Face hub that reading a repository takes."""

import hashlib
import http.server
import json
import threading
import urllib.parse


class Hub:
    """Serves `repositories`, {"owner/name": {commit or branch: {path: bytes}}}, where a branch is a commit's hash.

    Attributes:
        endpoint: its address.
        requests: (method, path, authorization) of all that was asked, in order.
        gated, private, token: repositories whose files, or which altogether, want that token.
        broken: an HTTP status that every answer has instead.
    """

    def __init__(self, repositories: dict[str, dict[str, dict[str, bytes] | str]]):
        self.repositories = repositories
        self.requests: list[tuple[str, str, str | None]] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.token = "hf_secret"
        self.broken: int | None = None

        class Handler(_Handler):
            hub = self

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def fetched(self) -> list[str]:
        """The paths in repositories whose contents were downloaded."""
        found = (path.partition("/resolve/")[2] for method, path, _ in self.requests if method == "GET")
        return [path for path in found if path]


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, format, *args):
        pass

    def answer(self) -> None:
        quoted = urllib.parse.urlparse(self.path).path
        path = urllib.parse.unquote(quoted)
        token = self.headers.get("Authorization")
        self.hub.requests.append((self.command, path, token))
        if self.hub.broken is not None:
            return self.send(self.hub.broken)
        parts = [urllib.parse.unquote(part) for part in quoted.strip("/").split("/")]
        listing = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if listing else parts[:2])
        allowed = token == f"Bearer {self.hub.token}"
        if name not in self.hub.repositories or (name in self.hub.private and not allowed):
            return self.send(404 if allowed else 401, {"X-Error-Code": "RepoNotFound"})
        tree = listing and parts[4:5] == ["tree"]
        revision = (parts[5] if len(parts) > 5 else "main") if listing else parts[3]
        commits = self.hub.repositories[name]
        commit = commits.get(revision)
        commit, files = (revision, commit) if isinstance(commit, dict) else (commit, commits.get(commit or ""))
        if not isinstance(files, dict):
            return self.send(404, {"X-Error-Code": "RevisionNotFound"})
        if tree:
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in files.items()
            ]
            return self.send(200, {}, json.dumps(entries).encode())
        if listing:
            siblings = [{"rfilename": file} for file in files]
            return self.send(200, {}, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())
        if name in self.hub.gated and not allowed:
            return self.send(403, {"X-Error-Code": "GatedRepo"})
        data = files.get("/".join(parts[4:]))
        headers = {"X-Repo-Commit": str(commit)}
        if data is None:
            return self.send(404, headers | {"X-Error-Code": "EntryNotFound"})
        self.send(200, headers | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data)

    def send(self, status: int, headers: dict[str, str] | None = None, data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
