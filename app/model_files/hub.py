"""The Hub: what a repository holds, and one file of it. The only place that speaks to it.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and the library's other variables count as they do there.
Files come by plain HTTP: only there a download goes on where it stopped, also in another process
(`hf_hub_download` of huggingface_hub 2.4 begins every attempt with an empty file, and so does Xet).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from app.model_files.refusal import Refused, Stopped

if TYPE_CHECKING:
    from hashlib import _Hash

_log = logging.getLogger(__name__)

_PIECE = 1024 * 1024
_ANSWER_SECONDS = 20.0
"""How long a list of files may take."""

_SILENCE = 20.0
"""Seconds without a byte after which a download counts as broken off."""

_PARTIAL = 206


class RemoteFile(msgspec.Struct, frozen=True):
    """`etag` names the content: its SHA-256 if it is `large`, else what git calls it."""

    name: str
    size: int
    etag: str
    large: bool


class Listing(msgspec.Struct, frozen=True):
    """A repository at a commit."""

    commit: str
    files: tuple[RemoteFile, ...]


def cache_root() -> Path:
    """Where the Hub's files are kept: `HF_HUB_CACHE`, else below `HF_HOME`."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def list_files(repo: str, revision: str) -> Listing:
    """Raises Refused."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=_ANSWER_SECONDS
        )
        files = tuple(
            RemoteFile(
                one.rfilename,
                int(one.lfs.size if one.lfs else one.size or 0),
                _hex(one.lfs.sha256 if one.lfs else one.blob_id or ""),
                one.lfs is not None,
            )
            for one in info.siblings or ()
        )
        return Listing(_hex(info.sha or ""), files)
    except Refused:
        raise
    except Exception as error:  # whatever HTTP, JSON and the library raise
        raise _refusal(error) from error


def fetch(
    repo: str, commit: str, file: RemoteFile, part: Path, count: Callable[[int], None]
) -> bool:
    """Bring the rest of a file to `part`, which may hold its beginning; whether it is as it should be.

    `count` is told of the bytes that came, or went (below 0) where the server begins anew; what it
    raises ends the download, and what has come stays. Raises Refused.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
    )

    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    try:
        with part.open("ab+") as opened:
            sink = _Sink(opened, file, count)
            if sink.held < file.size:
                url = hf_hub_url(repo, file.name, revision=commit)
                # As it is, and not compressed: the rest of a file is counted in its own bytes.
                headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
                if sink.held:
                    headers["Range"] = f"bytes={sink.held}-"
                with get_session().stream("GET", url, headers=headers, timeout=_SILENCE) as answer:
                    if answer.is_error:
                        answer.read()
                    hf_raise_for_status(answer)
                    if answer.status_code != _PARTIAL:
                        sink.begin_anew()
                    for piece in answer.iter_bytes():
                        sink.write(piece)
                        if sink.held > file.size:
                            break
            opened.flush()
        if sink.held < file.size:
            raise Refused("the Hub breaks off", temporary=True)
        return sink.held == file.size and sink.digest() == file.etag
    except (Refused, Stopped):
        raise
    except Exception as error:  # whatever HTTP, the disk and the library raise
        raise _refusal(error) from error


class _Sink:
    """A file that is hashed while it is written, so that nothing has to be read again at the end."""

    def __init__(self, file: BinaryIO, remote: RemoteFile, count: Callable[[int], None]) -> None:
        self._file = file
        self._remote = remote
        self._count = count
        self._hash = self._new_hash()
        self.held = 0
        file.seek(0)
        while piece := file.read(_PIECE):
            self._hash.update(piece)
            self.held += len(piece)

    def _new_hash(self) -> _Hash:
        if self._remote.large:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self._remote.size, usedforsecurity=False)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, piece: bytes) -> None:
        self._count(0)  # before: who is to stop writes no more
        self._file.write(piece)
        self._hash.update(piece)
        self.held += len(piece)
        self._count(len(piece))

    def begin_anew(self) -> None:
        """The server sends everything."""
        if self.held:
            self._count(-self.held)
            self._file.seek(0)
            self._file.truncate()
            self._hash, self.held = self._new_hash(), 0


def _hex(name: str) -> str:
    """A name that becomes part of a path."""
    if not name or not all(letter in "0123456789abcdef" for letter in name):
        raise Refused("the Hub's list of its files cannot be used")
    return name


def _refusal(error: Exception) -> Refused:
    """What the client may be told of it: no addresses, and no foreign words."""
    import httpx2
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    _log.info("the Hub: %s %s", type(error).__name__, status or "")
    match error:
        case errors.OfflineModeIsEnabled():
            return Refused("this server is offline (HF_HUB_OFFLINE)")
        case errors.GatedRepoError():
            return Refused("its licence has to be accepted at the Hub by the owner of HF_TOKEN")
        case errors.RevisionNotFoundError():
            return Refused("its repository has no such revision")
        case errors.EntryNotFoundError():
            return Refused("its repository has no such file")
        case errors.RepositoryNotFoundError() if status == 401:
            return Refused("its repository does not exist, or wants an HF_TOKEN")
        case errors.RepositoryNotFoundError():
            return Refused("its repository does not exist")
        case errors.HfHubHTTPError() if status in (401, 403):
            return Refused("the Hub does not let this server have it; check HF_TOKEN")
        case errors.HfHubHTTPError() if status == 404:
            return Refused("its repository does not exist")
        case errors.HfHubHTTPError() if status == 429:
            return Refused("the Hub is asked too often", temporary=True)
        case errors.HfHubHTTPError():
            return Refused(f"the Hub answers with status {status}", temporary=True)
        case httpx2.HTTPError():
            return Refused("the Hub cannot be reached", temporary=True)
        case OSError() if error.errno in (28, 122):  # ENOSPC, EDQUOT
            return Refused("the disk is full")
        case OSError() if error.errno:
            return Refused("its files cannot be written")
        case OSError():  # less came than was said
            return Refused("the Hub breaks off", temporary=True)
        case _:
            return Refused("what the Hub says cannot be used")
