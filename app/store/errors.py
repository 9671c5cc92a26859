"""What a store says when it cannot: both may pass by themselves, so a client may come back."""

from __future__ import annotations

from app.domain.errors import Unavailable


class StoreUnavailable(Unavailable):
    """The database or the place of the pictures does not answer, or will not, for now."""

    code = "storage_unavailable"


class StorageFull(Unavailable):
    """There is no room left, on the disk or in the quota."""

    code = "storage_full"
