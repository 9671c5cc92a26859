"""The files that put Easel on a server fit each other, and the programs that read them take them."""

from __future__ import annotations

import configparser
import fnmatch
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(ROOT / "systemd" / name)
    return parser


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    allowed = [
        line.removeprefix("!").rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert {"app", "config", "pyproject.toml"} <= set(names)
    for name in names:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, one) for one in allowed), name


def test_the_image_keeps_no_secret_and_is_not_root() -> None:
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert not re.search(r"(?i)password|secret|token|_key", DOCKERFILE)
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert "USER" in last
    assert "HEALTHCHECK" in last


def test_compose_names_files_and_arguments_that_exist() -> None:
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            known = source in COMPOSE["volumes"] or (ROOT / source).exists()
            assert known, f"{name}: {volume}"
        for network in service["networks"]:
            assert network in COMPOSE["networks"]
    for argument in COMPOSE["services"]["easel"]["build"]["args"]:
        assert re.search(rf"^ARG {argument}\b", DOCKERFILE, re.MULTILINE)
    webui = COMPOSE["services"]["open-webui"]["environment"]
    assert webui["IMAGES_OPENAI_API_BASE_URL"].endswith("/v1")  # a slash more breaks Open WebUI


def test_the_upstream_in_compose_is_the_other_one_elsewhere() -> None:
    """The two may differ in the address and in the head line, and in nothing else."""
    ours = (ROOT / "nginx/easel/upstream.conf").read_text().replace("127.0.0.1:5199", "easel:5199")
    theirs = (ROOT / "docker/upstream.conf").read_text()
    assert ours.partition("\n")[2] == theirs.partition("\n")[2]
    assert "easel:5199" in theirs


def test_running_jobs_get_their_time_before_anybody_kills() -> None:
    service = unit("easel.service")["Service"]
    lines = (ROOT / "systemd/easel.service").read_text()
    drain = re.search(r"EASEL_DRAIN_SECONDS=(\d+)", lines)
    assert drain
    assert seconds(service["TimeoutStopSec"]) >= float(drain[1]) + 10
    assert service["KillMode"] == "mixed"
    easel = COMPOSE["services"]["easel"]
    grace = seconds(easel["stop_grace_period"])
    assert grace >= float(easel["environment"]["EASEL_DRAIN_SECONDS"]) + 10


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for name in ("easel.service", "easel.socket"):
        text = (ROOT / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/easel/bin/easel", "/bin/true"))
    checked = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            str(tmp_path / "easel.service"),
            str(tmp_path / "easel.socket"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in checked.stderr.splitlines() if "easel." in line]
    assert not told


@pytest.mark.parametrize("script", ["docker/install.sh"])
def test_shell_scripts_are_well_formed(script: str) -> None:
    subprocess.run(["/bin/sh", "-n", str(ROOT / script)], check=True)
    wrong = subprocess.run(
        [str(ROOT / script), "/nowhere"],
        env={"VARIANT": "gpu", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (wrong.returncode, "VARIANT is cuda or cpu" in wrong.stderr) == (2, True)
