"""Where the weights of a model come from, as its card says it. Names only: nothing is looked up here.

bundled:NAME            a folder inside the package
/a/folder               a diffusers folder, or one .safetensors or .gguf file
hub:OWNER/NAME          a repository of the Hub at a `revision`; with a `file`, that file alone
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import msgspec

HUB = "hub:"
SINGLE_FILES = (".safetensors", ".gguf")
"""What a single file may end in: formats that hold numbers and no code."""

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"{HUB}({_PART}/{_PART})")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")


class HubSource(msgspec.Struct, frozen=True):
    """A repository of the Hub at a revision (a commit, a tag, a branch), or one `file` of it."""

    repo: str
    revision: str
    file: str = ""


def hub_source(source: str, revision: str, file: str = "") -> HubSource | None:
    """What a `hub:` source names; None for one that lies on the disk.

    Raises ValueError with a sentence that says what is wrong.
    """
    if not source.startswith(HUB):
        if file:
            raise ValueError("file names a file of a hub: source; put the path into source")
        return None
    match = _REPOSITORY.fullmatch(source)
    if match is None or ".." in source or "--" in source:
        raise ValueError("a hub source must be like hub:OWNER/NAME")
    if not revision:
        raise ValueError("a hub source needs a revision: best the commit, which never changes")
    if file and (not _FILE.fullmatch(file) or not is_single_file(file)):
        raise ValueError(f"file must end in {' or '.join(SINGLE_FILES)}")
    return HubSource(match[1], revision, file)


def is_single_file(path: str) -> bool:
    """Whether this names one file with weights, and not a folder."""
    return PurePosixPath(path).suffix.lower() in SINGLE_FILES
