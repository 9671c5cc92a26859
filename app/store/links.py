"""Links to pictures that need no key and end by themselves.

What you can rely on: only who holds the key file can make a link that `verify` accepts; one that has
expired, or of which anything was changed, is refused; links outlive a restart.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

_KEY_BYTES = 32

_LOCAL = "whoever may read the data folder"
"""What a local pass signs: no picture has such an id."""

_PASS_SECONDS = 60
_PASS = re.compile(r"easel-local-([0-9]{1,12})-([A-Za-z0-9_-]{1,64})")


class Links:
    """Signs ids of pictures. `clock` gives Unix seconds."""

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float] = time.time) -> Links:
        """With the key in `folder/links.key`, which is made, for its owner's eyes only, when missing.

        Raises OSError.
        """
        file = folder / "links.key"
        with contextlib.suppress(FileNotFoundError):
            key = file.read_bytes()
            if len(key) == _KEY_BYTES:
                return cls(key, clock)
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".links.key.{secrets.token_hex(4)}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, secrets.token_bytes(_KEY_BYTES))
            os.fsync(handle)
        finally:
            os.close(handle)
        draft.replace(file)
        return cls(file.read_bytes(), clock)

    def sign(self, image_id: str, expires: int) -> str:
        """The signature of a link to `image_id` until `expires` (Unix seconds)."""
        said = f"{image_id}\n{expires}".encode()
        return base64.urlsafe_b64encode(hmac.digest(self._key, said, "sha256")).decode().rstrip("=")

    def verify(self, image_id: str, expires: int, signature: str) -> bool:
        """Whether this link may be served now."""
        right = self.sign(image_id, expires).encode()
        given = signature.encode("utf-8", "replace")
        return hmac.compare_digest(right, given) and self._clock() < expires

    def local_pass(self) -> str:
        """What a command shows to the server of the same data folder, in the place of a key."""
        expires = int(self._clock()) + _PASS_SECONDS
        return f"easel-local-{expires}-{self.sign(_LOCAL, expires)}"

    def is_local_pass(self, given: str) -> bool:
        """Whether this is one that has not expired."""
        found = _PASS.fullmatch(given)
        return found is not None and self.verify(_LOCAL, int(found[1]), found[2])
