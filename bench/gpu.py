"""Real architectures with random weights on a GPU: steps by batch, the engine over the raw pipeline.

    python -m bench.gpu [--device cuda] [--dtype bfloat16] [--quick] [--only NAME …] [--out FILE]
    python -m bench.gpu --dry-run     shrunken architectures on the CPU: tries this program, not a GPU

Nothing is downloaded; see architectures.py for what stands in for what. `step`: one step of the stock
pipeline with so many pictures in a batch, its scheduler included. `pictures/s`: the engine with as many
requests at once, over the stock pipeline in a plain loop with Pillow's PNG, in turns (A, B, B, A).
Pixels of the engine alone must be the stock pipeline's. Both arms run in this process.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "100")  # for dry runs; before torch

import argparse
import gc
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from bench.architectures import ARCHITECTURES, Architecture, build
from bench.atelier import Atelier
from bench.stats import in_turns, spread

_HEAD = (
    "| model | size, steps | batch | step, ms | step / picture over batch 1 | "
    "pictures/s: engine / raw loop | gain | pixels alone | peak memory |\n" + "|---" * 9 + "|"
)


def main() -> int:
    given = _arguments()
    if not given.dry_run and not torch.cuda.is_available():
        print("There is no GPU here; --dry-run tries the program on the CPU.", file=sys.stderr)
        return 2
    device, dtype = given.device, getattr(torch, given.dtype)
    if given.dry_run:
        device, dtype = "cpu", torch.float32
    lines = [_facts(device, dtype), "", _HEAD]
    equal = True
    wanted = [arch for arch in ARCHITECTURES if not given.only or arch.name in given.only]
    for full in wanted:
        arch = replace(full, steps=3) if given.dry_run else full
        pipeline = build(arch, device, dtype, small=given.dry_run)
        for side in (64, 96) if given.dry_run else (512, 1024):
            print(f"{arch.name} {side} …", file=sys.stderr, flush=True)
            atelier = Atelier(arch, pipeline, device, side)
            equal = _rows(atelier, arch, lines, quick=given.quick or given.dry_run) and equal
        del pipeline, atelier
        gc.collect()
        torch.cuda.empty_cache()
    table = "\n".join(lines)
    print(table)
    if given.out:
        Path(given.out).write_text(table + "\n", "utf-8")
    return 0 if equal else 1


def _rows(atelier: Atelier, arch: Architecture, lines: list[str], *, quick: bool) -> bool:
    """Append a line for each batch size; whether pixels of the engine alone are the stock ones."""
    equal = atelier.same_pixels()
    rounds = 1 if quick else 3
    first = 0.0
    for batch in (1, 2) if quick else (1, 2, 4, 8):
        shown = [arch.name, f"{atelier.side}x{atelier.side}, {arch.steps}", str(batch)]
        try:
            steps = atelier.raw_steps(batch)
            middle = statistics.median(steps)
            first = first or middle
            atelier.engine(batch)  # threads, shapes and kernels are set up here
            torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
            compared = in_turns(partial(atelier.engine, batch), partial(atelier.raw, batch), rounds)
        except torch.OutOfMemoryError:
            lines.append(_line([*shown, *["out of memory"] * 6]))
            break
        rate, other = (batch / statistics.median(arm) for arm in (compared.first, compared.second))
        shown += [
            f"{middle * 1e3:.2f} ± {spread(steps) * 1e3:.2f}",
            f"{middle / batch / first:.2f}",
            f"{rate:.3f} / {other:.3f}",
            f"{1 / compared.ratio:.2f}",
            ("equal" if equal else "DIFFER") if batch == 1 else "",
            _peak(),
        ]
        lines.append(_line(shown))
    return equal


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _peak() -> str:
    if not torch.cuda.is_available():
        return "-"
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def _facts(device: str, dtype: torch.dtype) -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = ", ".join(f"{one} {metadata.version(one)}" for one in ("torch", "diffusers"))
    dry = (
        "A dry run with shrunken architectures: these figures mean nothing. "
        if device == "cpu"
        else ""
    )
    return (
        f"{dry}`{' '.join(['python -m bench.gpu', *sys.argv[1:]])}` on {name}, {dtype}, {versions}. "
        "Random weights, random prompt embeddings, no text encoder."
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--quick", action="store_true", help="one round, batches 1 and 2")
    parser.add_argument("--dry-run", action="store_true", help="shrunken, on the CPU")
    names = [arch.name for arch in ARCHITECTURES]
    parser.add_argument("--only", nargs="*", choices=names, default=[])
    parser.add_argument("--out", help="write the table there too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
