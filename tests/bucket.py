"""A stand-in for Google Cloud Storage: a server of this machine with that part of its JSON API that is used here.

`serving` runs it in a thread. Objects are in its memory, under names without meaning: there are no directories, and
nothing is appended to.
"""

import contextlib
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator

_RESOURCE = re.compile(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+))?(?:/moveTo/o/([^/]+))?)?")


class Store:
    """Objects by their names, each its bytes and its generation."""

    def __init__(self):
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}  # by number: the name, and what came so far
        self.lock, self.numbers = threading.Lock(), itertools.count(1)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # an answer is one packet, at once
    store: Store

    def do_GET(self):
        _, name, query = self._asked()
        if name is None and "/o" not in self.path.partition("?")[0].removeprefix("/storage"):
            return self._reply({"kind": "storage#bucket", "name": "bucket"})
        if name is None:
            return self._reply(self._listing(query))
        found = self.store.objects.get(name)
        if found is None:
            return self._error(404)
        if query.get("alt") != "media":
            return self._reply(_about(name, *found))
        data, generation = found
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._error(304)
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self._error(412)
        status, extra, part = 200, {}, data
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(match[1]) if match[1] else len(data) - int(match[2])
            last = min(int(match[2]) if match[1] and match[2] else len(data) - 1, len(data) - 1)
            if first >= len(data):
                return self._error(416)
            status, part = 206, data[first : last + 1]
            extra["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(status, part, {"x-goog-generation": str(generation), **extra})

    def do_POST(self):
        _, name, query = self._asked()
        body = self._body()
        if target := self._match()[3]:
            with self.store.lock:
                found = self.store.objects.pop(name or "", None)
                about = None if found is None else self._put(urllib.parse.unquote(target), found[0], {})
            return self._error(404) if about is None else self._reply(about)
        kind = query.get("uploadType")
        if kind == "resumable" and "upload_id" not in query:
            number = str(next(self.store.numbers))
            name = query.get("name") or json.loads(body)["name"]
            self.store.uploads[number] = (name, bytearray())
            place = (
                f"http://{self.headers['Host']}{self.path.partition('?')[0]}?uploadType=resumable&upload_id={number}"
            )
            return self._send(200, b"", {"Location": place})
        if kind == "resumable":
            return self._chunk(query, body)
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])
            assert boundary is not None
            _, about, rest = body.split(f"--{boundary[1]}".encode(), 2)
            name = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            data = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)[1]
            body = re.sub(rb"\r?\n$", b"", data[: data.rindex(f"--{boundary[1]}--".encode())])
        else:
            name = query["name"]
        with self.store.lock:
            about = self._put(name, body, query)
        self._reply(about) if about else self._error(412)

    def do_PUT(self):
        self._chunk(self._asked()[2], self._body())

    def do_DELETE(self):
        _, name, query = self._asked()
        with self.store.lock:
            found = self.store.objects.get(name or "")
            if found is None:
                return self._error(404)
            if query.get("ifGenerationMatch", str(found[1])) != str(found[1]):
                return self._error(412)
            del self.store.objects[name or ""]
        self._send(204, b"", {})

    def _chunk(self, query, body: bytes) -> None:
        """Of a resumable upload; the last one says how large the whole is."""
        name, data = self.store.uploads[query["upload_id"]]
        data += body
        if self.headers.get("Content-Range", "bytes */0").endswith("/*"):
            return self._send(308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {})
        with self.store.lock:
            about = self._put(name, bytes(data), {})
        self._reply(about)

    def _put(self, name: str, data: bytes, query) -> dict | None:
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != self.store.objects.get(name, (b"", 0))[1]:
            return None
        self.store.objects[name] = data, next(self.store.numbers)
        return _about(name, *self.store.objects[name])

    def _listing(self, query) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        for name, found in sorted(self.store.objects.items()):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if (end := query.get("endOffset")) and name >= end:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(_about(name, *found))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def _match(self) -> re.Match[str]:
        match = _RESOURCE.fullmatch(self.path.partition("?")[0])
        assert match is not None, self.path
        return match

    def _asked(self) -> tuple[str, str | None, dict[str, str]]:
        match = self._match()
        query = dict(urllib.parse.parse_qsl(self.path.partition("?")[2]))
        return match[1], urllib.parse.unquote(match[2]) if match[2] else None, query

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _reply(self, content: dict | None) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int) -> None:
        self._send(
            status, json.dumps({"error": {"code": status, "message": "no"}}).encode() if status != 304 else b"", {}
        )

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # gcsfs asks twice, and hangs up on the slower answer
            super().handle_error(request, client_address)


def _about(name: str, data: bytes, generation: int) -> dict:
    return {
        "kind": "storage#object",
        "name": name,
        "bucket": "bucket",
        "size": str(len(data)),
        "generation": str(generation),
        "metageneration": "1",
        "updated": "2026-01-01T00:00:00.000Z",
        "timeCreated": "2026-01-01T00:00:00.000Z",
    }


@contextlib.contextmanager
def serving() -> Iterator[tuple[Store, dict[str, str]]]:
    """The objects of gs://bucket, and what the environment has to say for programs to find them."""
    store = Store()
    server = _Server(("localhost", 0), type("Handler", (_Handler,), {"store": store}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://localhost:{server.server_address[1]}"
    try:
        yield (
            store,
            {
                "STORAGE_EMULATOR_HOST": url,  # of gcsfs
                "FSSPEC_GS": '{"token": "anon"}',
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks another server of what kind a bucket is
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
