"""Which devices are used: told by the system's files and by what torch was built for."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import devices
from app.settings import ConfigurationError, load_settings

_LINES = ("cuda: Optional[str] = None", "hip: Optional[str] = None", "xpu: Optional[str] = None")


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in devices._CHOSEN.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


def machine(root: Path, *, nvidia: int = 0, amd: int = 0, intel: int = 0) -> Path:
    for number in range(nvidia):
        (root / f"proc/driver/nvidia/gpus/0000:0{number}:00.0").mkdir(parents=True)
    for number in range(amd + 1):  # the first node is the processor
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 8\nsimd_count {number * 64}\n")
    for number, maker in enumerate(["0x1002"] * amd + ["0x8086"] * intel):
        card = root / f"sys/class/drm/renderD{128 + number}/device"
        card.mkdir(parents=True)
        (card / "vendor").write_text(f"{maker}\n")
    return root


def built(root: Path, kind: str = "") -> Path:
    """The file in which torch says what it was built for."""
    lines = [
        line.replace("None", "'7.1'") if line.startswith(f"{kind}:") else line for line in _LINES
    ]
    file = root / "version.py"
    file.write_text("\n".join(["from typing import Optional", *lines, ""]))
    return file


@pytest.mark.parametrize(
    ("kind", "there", "used"),
    [
        ("cuda", {"nvidia": 2}, ("cuda:0", "cuda:1")),
        ("hip", {"amd": 2}, ("cuda:0", "cuda:1")),
        ("xpu", {"intel": 1}, ("xpu:0",)),
        ("cuda", {"amd": 1}, ("cpu",)),
        ("cuda", {}, ("cpu",)),
        ("", {"nvidia": 1, "amd": 1, "intel": 1}, ("cpu",)),
        ("xpu", {"amd": 1}, ("cpu",)),
    ],
)
def test_gpus_are_used_that_are_there_and_that_torch_was_built_for(
    tmp_path: Path, kind: str, there: dict[str, int], used: tuple[str, ...]
) -> None:
    assert devices.found(machine(tmp_path, **there), built(tmp_path, kind)) == used


@pytest.mark.parametrize(
    ("kind", "variable", "chosen", "used"),
    [
        ("cuda", "CUDA_VISIBLE_DEVICES", "1", ("cuda:0",)),
        ("cuda", "CUDA_VISIBLE_DEVICES", "0,1,5", ("cuda:0", "cuda:1")),
        ("cuda", "CUDA_VISIBLE_DEVICES", "", ("cpu",)),
        ("cuda", "CUDA_VISIBLE_DEVICES", "-1", ("cpu",)),
        ("hip", "HIP_VISIBLE_DEVICES", "0", ("cuda:0",)),
        ("xpu", "ZE_AFFINITY_MASK", "0", ("xpu:0",)),
    ],
)
def test_only_those_that_the_libraries_may_see(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    variable: str,
    chosen: str,
    used: tuple[str, ...],
) -> None:
    monkeypatch.setenv(variable, chosen)
    house = machine(tmp_path, nvidia=2, amd=2, intel=2)
    assert devices.found(house, built(tmp_path, kind)) == used


def test_a_gpu_that_torch_was_not_built_for_is_told(tmp_path: Path) -> None:
    house = machine(tmp_path, nvidia=2, intel=1)
    told = devices.idle(house, built(tmp_path))
    assert told is not None
    assert "2 GPUs of NVIDIA's" in told
    assert devices.idle(house, built(tmp_path, "cuda")) is None
    amd = devices.idle(machine(tmp_path / "other", amd=1), built(tmp_path, "cuda"))
    assert amd is not None
    assert "a GPU of AMD's" in amd


def test_the_torch_that_is_here_is_read() -> None:
    import torch

    kind = devices._kind(None)
    known = {"cuda": torch.version.cuda, "hip": torch.version.hip, "xpu": torch.version.xpu}
    assert {name for name, version in known.items() if version} == ({kind} if kind else set())


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ('["cuda:1", "cuda:0"]', ("cuda:1", "cuda:0")),
        ('["rocm:0"]', ("cuda:0",)),
        ('["xpu"]', ("xpu",)),
        ('["cpu"]', ("cpu",)),
    ],
)
def test_devices_are_called_by_name(
    monkeypatch: pytest.MonkeyPatch, given: str, used: tuple[str, ...]
) -> None:
    monkeypatch.setenv("EASEL_DEVICES", given)
    assert load_settings().device_names() == used


@pytest.mark.parametrize(
    "given", ["[]", '["gpu"]', '["cuda:0", "rocm:0"]', '["cuda:zero"]', '["/dev/dri"]']
)
def test_what_is_no_device_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("EASEL_DEVICES", given)
    with pytest.raises(ConfigurationError, match="devices must be"):
        load_settings()
