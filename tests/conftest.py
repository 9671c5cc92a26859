"""Fixtures: a real gateway, on a socket, with its own worker process."""

from __future__ import annotations

import os

# Read by OpenMP when torch is loaded; see app/workers/local.py.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway import Gateway, running_gateway
from tests.hub_mirror import Mirror, mirror_of
from tests.postgres import database_url, postgres
from tests.s3 import bucket, s3_endpoint
from tests.shelves import REPO, repository

__all__ = ["bucket", "database_url", "postgres", "s3_endpoint"]  # fixtures of other files

CARDS = Path(__file__).parent / "cards"


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway as it comes: the repository's config, the bundled models."""
    with running_gateway(tmp_path_factory.mktemp("data"), {}) as started:
        yield started


@pytest.fixture(scope="session")
def fake_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose models are fake: quick to start, with a short queue and lively heartbeats."""
    with running_gateway(tmp_path_factory.mktemp("data"), fake_settings()) as started:
        yield started


def fake_settings() -> dict[str, str]:
    return {
        "EASEL_MODELS_DIR": str(CARDS),
        "EASEL_DEFAULT_MODEL": "fake",
        "EASEL_PRELOAD": '["fake"]',
        "EASEL_DEVICES": '["fake"]',
        "EASEL_MAX_RUNNING": "1",
        "EASEL_MAX_QUEUE": "3",
        "EASEL_HEARTBEAT_INTERVAL": "0.2",
    }


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A hub with one model, which this process asks instead of the real one."""
    import huggingface_hub.constants as hub

    from app.model_files import download

    with mirror_of({REPO: repository(tmp_path / "repository")}) as started:
        monkeypatch.setattr(hub, "ENDPOINT", started.url)
        template = started.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(download, "_FIRST_PAUSE", 0.01)
        yield started
