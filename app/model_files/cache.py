"""The Hub's cache on this machine, laid out as its own library does, so that others can share it.

models--OWNER--NAME/blobs/ETAG              a file by the name that its content has
models--OWNER--NAME/snapshots/COMMIT/PATH   a link to it, where pipelines look
models--OWNER--NAME/refs/REVISION           the commit that a tag or a branch stood for
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = ".part"
"""The end of a file's name while it is fetched."""


class Cache:
    """`root` is the folder that `HF_HUB_CACHE` names."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def commit(self, repo: str, revision: str) -> str:
        """The commit that a revision stood for when it was last asked for; "" if it never was."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            found = (self._of(repo) / "refs" / revision).read_text("utf-8").strip()
        except OSError:
            return ""
        return found if _COMMIT.fullmatch(found) else ""

    def remember(self, repo: str, revision: str, commit: str) -> None:
        if not _COMMIT.fullmatch(revision):
            ref = self._of(repo) / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, "utf-8")

    def snapshot(self, repo: str, commit: str) -> Path:
        return self._of(repo) / "snapshots" / commit

    def blob(self, repo: str, etag: str) -> Path:
        return self._of(repo) / "blobs" / etag

    def part(self, repo: str, etag: str) -> Path:
        """Where what has come of a file lies, until all of it is there."""
        return self._of(repo) / "blobs" / f"{etag}{_PART}"

    def lock(self, repo: str) -> Path:
        """What a process holds while it fetches files of the repository."""
        path = self.root / ".locks" / self._of(repo).name / "easel.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def link(self, repo: str, commit: str, name: str, etag: str) -> None:
        """Show a whole blob under its name. A copy does it where there are no links."""
        pointer = self.snapshot(repo, commit) / name
        blob = self.blob(repo, etag)
        if pointer.exists():
            return
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)  # a link to nowhere
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            shutil.copyfile(blob, pointer)

    def forget(self, repo: str, commit: str, names: Collection[str]) -> int:
        """Remove these files of a snapshot, and what no other one needs of them; tell the bytes."""
        snapshot = self.snapshot(repo, commit)
        blobs = {}
        for name in names:
            pointer = snapshot / name
            if pointer.is_symlink():
                blobs[pointer.resolve()] = pointer
        for name in names:
            (snapshot / name).unlink(missing_ok=True)
        kept = {path.resolve() for path in self._pointers(repo)}
        freed = 0
        for blob in blobs.keys() - kept:
            with suppress(OSError):
                size = blob.stat().st_size
                blob.unlink()
                freed += size
        for folder in [*sorted(snapshot.rglob("*"), reverse=True), snapshot]:
            if folder.is_dir() and not folder.is_symlink():
                with suppress(OSError):  # it still holds something
                    folder.rmdir()
        return freed

    def forget_parts(self, repo: str) -> None:
        """Remove what came of files that are not whole."""
        for path in self._of(repo).glob(f"blobs/*{_PART}"):
            path.unlink(missing_ok=True)

    def _pointers(self, repo: str) -> Iterator[Path]:
        return (path for path in self._of(repo).glob("snapshots/**/*") if path.is_symlink())

    def _of(self, repo: str) -> Path:
        return self.root / f"models--{repo.replace('/', '--')}"


def free_bytes(folder: Path) -> int:
    """What the disk has left where the folder lies, or will lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
