"""What a shell offers when Tab is pressed: names from the settings, jobs from the server.

Nothing here may be slow or say a word: what goes wrong offers nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from app.cli._server import server_or_own
from app.domain import samplers
from app.domain.errors import EaselError
from app.settings import ConfigurationError, load_cards, load_controls, load_settings, load_styles

_SECONDS = 1.0
_MOST = 50


def model_ids(incomplete: str) -> list[str]:
    try:
        return _fitting(load_cards(load_settings().models_dir), incomplete)
    except (ConfigurationError, OSError):
        return []


def control_ids(incomplete: str) -> list[str]:
    try:
        return _fitting(load_controls(load_settings().controls_dir), incomplete)
    except (ConfigurationError, OSError):
        return []


def style_ids(incomplete: str) -> list[str]:
    try:
        return _fitting(load_styles(load_settings().styles_file), incomplete)
    except (ConfigurationError, OSError):
        return []


def sampler_names(incomplete: str) -> list[str]:
    tables = (samplers.STABLE_DIFFUSION, samplers.FLOW, samplers.SANA, samplers.PIXART)
    return _fitting(dict.fromkeys(name for table in tables for name in table), incomplete)


def job_ids(incomplete: str) -> list[str]:
    """The newest jobs, of the server that a command without `--server` means."""
    try:
        address, key = (os.environ.get(name, "") for name in ("EASEL_SERVER", "EASEL_API_KEY"))
        with server_or_own(address, key) as server:
            asked = {"limit": _MOST}
            jobs = server.listed("/jobs", "jobs", params=asked, timeout=_SECONDS)
    except (EaselError, ConfigurationError, OSError):
        return []
    ids = [str(job.get("id")) for job in jobs]
    return _fitting([one for one in ids if one.isascii() and one.isalnum()], incomplete)


def _fitting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
