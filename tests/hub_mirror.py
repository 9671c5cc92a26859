"""A hub on 127.0.0.1, as far as a download asks for one; with the faults that real ones have."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_PIECE = 16 * 1024


class Asked(msgspec.Struct, frozen=True):
    """One request. `name` is the file, or "" for the list."""

    name: str
    range: str | None
    authorization: str | None


class Mirror:
    """Serves `folders` by repository. The faults are looked at anew for every request and piece."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.asked: list[Asked] = []
        self.sent: dict[str, int] = {}
        self.rate = 0.0
        """Bytes per second of one file; 0 is as fast as it goes."""
        self.cuts: dict[str, list[int]] = {}
        """By file: after how many bytes the next answers break off."""
        self.damaged: dict[str, int] = {}
        """By file: how many answers hold one wrong byte."""
        self.statuses: list[int] = []
        """What the next requests are answered with."""
        self.ignores_ranges = False
        self.url = ""

    def ranges(self, name: str) -> list[str | None]:
        return [asked.range for asked in self.asked if asked.name == name]

    def size(self, repo: str) -> int:
        return sum(path.stat().st_size for path in self.folders[repo].rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mirror: Mirror

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path)
        asked = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not listed and not asked:  # the library asks for this and that
            self._short(404, {"error": "Not found"})
            return
        repo = (listed or asked or ["", ""])[1]
        name = asked[3] if asked else ""
        mirror = self.mirror
        headers = self.headers
        mirror.asked.append(Asked(name, headers.get("range"), headers.get("authorization")))
        if mirror.statuses:
            self._short(mirror.statuses.pop(0), {"error": "as the test wants it"})
        elif repo not in mirror.folders:
            self._short(404, {"error": "Repository not found"}, code="RepoNotFound")
        elif listed:
            self._short(200, _listing(repo, mirror.folders[repo]))
        else:
            self._file(mirror.folders[repo] / name, name)

    def _short(self, status: int, body: object, code: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if code:
            self.send_header("x-error-code", code)
        self.end_headers()
        self.wfile.write(data)

    def _file(self, path: Path, name: str) -> None:
        mirror = self.mirror
        data = path.read_bytes()
        whole = len(data)
        if mirror.damaged.get(name, 0) > 0:
            mirror.damaged[name] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        begin = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range") or "")
        if match and not mirror.ignores_ranges:
            begin = int(match[1])
            self.send_response(206)
            self.send_header("content-range", f"bytes {begin}-{whole - 1}/{whole}")
        else:
            self.send_response(200)
        self.send_header("content-length", str(whole - begin))
        self.end_headers()
        end = whole
        if mirror.cuts.get(name):
            end = min(whole, begin + mirror.cuts[name].pop(0))
        began = time.monotonic()
        for place in range(begin, end, _PIECE):
            piece = data[place : min(place + _PIECE, end)]
            self.wfile.write(piece)
            mirror.sent[name] = mirror.sent.get(name, 0) + len(piece)
            while mirror.rate and place - begin > mirror.rate * (time.monotonic() - began):
                time.sleep(0.005)
        if end < whole:
            self.close_connection = True
            self.connection.shutdown(2)


def _listing(repo: str, folder: Path) -> dict[str, object]:
    siblings = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        file: dict[str, object] = {
            "rfilename": path.relative_to(folder).as_posix(),
            "size": len(data),
            "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        }
        if path.suffix in (".safetensors", ".gguf", ".bin"):
            sha = hashlib.sha256(data).hexdigest()
            file["lfs"] = {"size": len(data), "sha256": sha, "pointerSize": 134}
        siblings.append(file)
    return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}


@contextmanager
def mirror_of(folders: dict[str, Path]) -> Iterator[Mirror]:
    mirror = Mirror(folders)
    handler = type("Handler", (_Handler,), {"mirror": mirror})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may hang up
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
