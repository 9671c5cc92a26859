"""Starts a real nginx with the files of `nginx/`, in front of a gateway."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.server import free_port

FILES = Path(__file__).parent.parent / "nginx"

_MAIN = """\
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {site};
}}
"""


def program() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert found, "this needs nginx: install your system's package"
    return found


def set_up(folder: Path, upstream: int, port: int, site: str = "easel.conf", **other: str) -> Path:
    """The files of `nginx/` in `folder`, with other ports and paths; gives the main file.

    `other` are further replacements in all of them.
    """
    folder = folder.resolve()
    shutil.copytree(FILES, folder, dirs_exist_ok=True)
    changes = {
        "127.0.0.1:5199": f"127.0.0.1:{upstream}",
        "listen [::]": "# listen [::]",
        "listen 80;": f"listen 127.0.0.1:{port};",
        "/var/log/nginx": str(folder),
        "/etc/ssl/easel": str(folder),
        **other,
    }
    for file in folder.rglob("*.conf"):
        text = file.read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        file.write_text(text)
    main = folder / "nginx.conf"
    user = "user root;" if os.getuid() == 0 else ""
    main.write_text(_MAIN.format(user=user, folder=folder, site=site))
    return main


@contextmanager
def nginx_before(upstream: int, folder: Path, **other: str) -> Iterator[str]:
    """The address of an nginx that passes on to the port `upstream`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    main = set_up(folder, upstream, port, **other)
    process = subprocess.Popen([program(), "-p", str(folder), "-c", str(main)])
    try:
        deadline = time.monotonic() + 10
        while not _answers(port):
            assert process.poll() is None, "nginx ended"
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
