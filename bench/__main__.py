"""Run the benchmarks and print a table.

    python -m bench [--quick] [NAME …]

`--list` tells the names; what needs a GPU is `python -m bench.gpu`. All stays on this machine and is
bounded in time. Figures of a busy machine are worth little: the table tells the load average before
and after. The exit status is 1 when pixels differ, and 0 otherwise whatever the figures are.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata

from bench.stats import Row

NAMES = (
    "latency",
    "throughput",
    "gateway",
    "webcost",
    "codec",
    "small",
    "preempt",
    "cancel",
    "previews",
    "batching",
    "eta",
    "goodput",
    "poisson",
    "swaps",
    "store",
    "streams",
    "overload",
    "slow_clients",
    "peers",
    "bundled_models",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Easel's benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; a first impression")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--list", action="store_true", help="tell the names and end")
    given = parser.parse_args()
    if given.list:
        print("\n".join(NAMES))
        return 0
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are ended on the way out
    before, start = _load(), time.monotonic()
    rows: list[Row] = []
    equal = True
    for name in given.names or NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        run: Callable[..., tuple[list[Row], bool]] = import_module(f"bench.{name}").run
        found, same = run(quick=given.quick)
        rows += found
        equal = equal and same
    print(_facts(before, time.monotonic() - start))
    print(_table(rows))
    if not equal:
        print("\nPixels differ.")
    return 0 if equal else 1


def _facts(load_before: str, seconds: float) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers"))
    return (
        f"`{' '.join(['python -m bench', *sys.argv[1:]])}` on {os.cpu_count()} cores, "
        f"{platform.machine()} {platform.system()}, Python {platform.python_version()}, "
        f"{versions}; load average {load_before} before and {_load()} after {seconds:.0f} s. "
        "Medians ± median absolute deviation.\n"
    )


def _table(rows: list[Row]) -> str:
    lines = ["| benchmark | what | figure | goal |", "|---|---|---|---|"]
    lines += [f"| {row.bench} | {row.what} | {row.figure} | {row.goal} |" for row in rows]
    return "\n".join(lines)


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
