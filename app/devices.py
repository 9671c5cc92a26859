"""What there is to draw on, told by the system's own files: torch need not be imported for it.

ROCm's build of torch calls AMD's GPUs "cuda", as NVIDIA's are called; here they may be "rocm" too.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Kind = Literal["cuda", "hip", "xpu"]
"""Whose GPUs a build of torch can use: NVIDIA's, AMD's, Intel's."""

_MAKERS: dict[Kind, str] = {"cuda": "NVIDIA", "hip": "AMD", "xpu": "Intel"}
_NAME = re.compile(r"cpu|mps|fake|(cuda|rocm|xpu)(:\d+)?")
_BUILT_FOR = re.compile(r"^(cuda|hip|xpu)\b[^=]*=\s*'", re.MULTILINE)
_CORES = re.compile(r"^simd_count [1-9]", re.MULTILINE)
_INTEL = "0x8086"
_CHOSEN: dict[Kind, tuple[str, ...]] = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "hip": ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    "xpu": ("ZE_AFFINITY_MASK",),
}
"""Variables by which the libraries are told to use only some."""


def named(names: tuple[str, ...]) -> tuple[str, ...]:
    """As torch calls them. Raises ValueError for what is no device, and for one that is named twice."""
    known = tuple(name.replace("rocm", "cuda") for name in names if _NAME.fullmatch(name))
    if len(known) < max(len(names), 1) or len(set(known)) < len(known):
        raise ValueError(
            'devices must be "auto", or a list of different ones: "cpu", "mps", "cuda:0", "rocm:0", '
            '"xpu:0" …'
        )
    return known


def found(root: Path = Path("/"), torch: Path | None = None) -> tuple[str, ...]:
    """Every GPU that this torch can use; else the CPU. `torch` is the file that tells its build."""
    kind = _kind(torch)
    if kind is not None and (count := _visible(kind, _count(kind, root))):
        device = "xpu" if kind == "xpu" else "cuda"
        return tuple(f"{device}:{number}" for number in range(count))
    if sys.platform == "darwin" and os.uname().machine == "arm64":
        return ("mps",)
    return ("cpu",)


def idle(root: Path = Path("/"), torch: Path | None = None) -> str | None:
    """That there are GPUs which this torch was not built for, in words; None if there are none."""
    built = _kind(torch)
    for kind, maker in _MAKERS.items():
        # Processors have GPUs of Intel's inside, which nobody misses.
        if kind not in {built, "xpu"} and (count := _count(kind, root)):
            return (
                f"there {'is a GPU' if count == 1 else f'are {count} GPUs'} of {maker}'s, but the "
                "torch that is installed was not built for it; see docs/operations.md"
            )
    return None


def _kind(file: Path | None) -> Kind | None:
    spec = find_spec("torch")
    if file is None and spec is not None and spec.origin:
        file = Path(spec.origin).with_name("version.py")
    try:
        text = file.read_text("utf-8") if file else ""
    except OSError:
        return None
    told = {match[1] for match in _BUILT_FOR.finditer(text)}
    return next((kind for kind in _MAKERS if kind in told), None)


def _count(kind: Kind, root: Path) -> int:
    if kind == "cuda":
        return len(list(root.glob("proc/driver/nvidia/gpus/*")))
    if kind == "hip":
        nodes = root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")
        return sum(bool(_CORES.search(_text(node))) for node in nodes)
    makers = root.glob("sys/class/drm/renderD*/device/vendor")
    return sum(_text(maker).strip() == _INTEL for maker in makers)


def _text(file: Path) -> str:
    try:
        return file.read_text("ascii", errors="replace")
    except OSError:
        return ""


def _visible(kind: Kind, count: int) -> int:
    for name in _CHOSEN[kind]:
        if (chosen := os.environ.get(name)) is not None:
            return min(
                count, len([one for one in chosen.split(",") if one.strip() not in {"", "-1"}])
            )
    return count
