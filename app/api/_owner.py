"""Whose a request is: what fair sharing goes by."""

from __future__ import annotations

import re
from typing import Any

from litestar import Request

from app.api._http import DoorSettings

LOCAL = "local"
"""The owner of all requests that do not say, or are not trusted to say, whose they are."""

_USER = re.compile(r"[A-Za-z0-9_.@-]{1,128}")


def owner_of(request: Request[Any, Any, Any], doors: DoorSettings) -> str:
    """The user that a trusted proxy names in `X-OpenWebUI-User-Id`; a name of odd letters is none."""
    given = request.headers.get("x-openwebui-user-id", "") if doors.trust_user_header else ""
    return given if _USER.fullmatch(given) else LOCAL
