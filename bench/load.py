"""A load generator in a process of its own, so that it competes with nobody for an interpreter.

    fire(Plan(port, shots, clients=8))      closed loop: eight clients, each asks when it was answered
    fire(Plan(port, shots))                 open loop: every shot at its own time, answered or not

Latency counts from when a shot was *due*, not from when it could be sent: a server that stalls is
charged for all that came meanwhile. In an open loop each shot has a connection of its own, as
strangers have; a client of a closed loop keeps its own. Bodies are thrown away, save of shots to keep.
It talks to 127.0.0.1 alone, and ends after `limit` seconds; what was not answered then has status 0.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.connection import Connection
from bench.stats import percentile

ROUTE = "/v1/images/generations"
STREAM = f"{ROUTE}/stream"
MOST_SHOTS = 5000
MOST_SECONDS = 900.0
LEFT = -1
"""The status of a shot whose client hung up on purpose."""

_STEP = re.compile(rb'"step": ?(\d+)')


class Shot(msgspec.Struct, frozen=True):
    """One request. `due` is in seconds from the start, for open loops. Its client hangs up after
    `leave_after` seconds, or, on a stream, when `leave_step` is told; see LEFT. `keep` puts the answer
    in a file."""

    body: dict[str, Any]
    due: float = 0.0
    kind: str = ""
    path: str = ROUTE
    leave_step: int | None = None
    leave_after: float | None = None
    keep: bool = False


class Plan(msgspec.Struct, frozen=True):
    """`clients` is 0 for an open loop. Kept answers go to `folder`, named by the shot's number."""

    port: int
    shots: list[Shot]
    clients: int = 0
    limit: float = 300.0
    folder: str = ""


class Outcome(msgspec.Struct):
    """What came of a shot; seconds from the start. `status` 0: no answer, LEFT: hung up."""

    kind: str
    due: float
    sent: float = 0.0
    ended: float = 0.0
    status: int = 0
    size: int = 0
    job: str = ""

    @property
    def latency(self) -> float:
        """Infinite where no picture came."""
        return self.ended - self.due if self.status == 200 else float("inf")


class Measured(msgspec.Struct):
    """`wall`: seconds from the first shot's time to the last answer. `cpu`: this generator's own."""

    outcomes: list[Outcome]
    wall: float
    cpu: float

    def latencies(self, kind: str | None = None) -> list[float]:
        return [one.latency for one in self.outcomes if kind in {None, one.kind}]

    @property
    def doubts(self) -> str:
        """Why these figures may be the generator's and not the server's; empty where they are not."""
        late = percentile([max(0.0, one.sent - one.due) for one in self.outcomes], 0.99)
        told = []
        if self.cpu > 0.2 * self.wall:
            told.append(f"the generator took {self.cpu / self.wall:.0%} of a core")
        if late > 0.02:
            told.append(f"p99 of its lateness was {late * 1e3:.0f} ms")
        if lost := sum(one.status not in {200, LEFT} for one in self.outcomes):
            told.append(f"{lost} of {len(self.outcomes)} without a picture")
        return "; ".join(told)


def fire(plan: Plan) -> Measured:
    """Run the plan in a child process. Raises ValueError for more than is allowed."""
    if len(plan.shots) > MOST_SHOTS or plan.limit > MOST_SECONDS:
        raise ValueError(f"at most {MOST_SHOTS} shots in {MOST_SECONDS:.0f} s")
    ended = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=msgspec.json.encode(plan),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        timeout=plan.limit + 60,
        check=True,
    )
    return msgspec.json.decode(ended.stdout, type=Measured)


async def run(plan: Plan) -> Measured:
    """Run the plan in this process."""
    outcomes = [Outcome(shot.kind, shot.due) for shot in plan.shots]
    kept: dict[int, bytes] = {}
    cpu, start = time.process_time(), time.monotonic() + (0.05 if not plan.clients else 0.0)
    clients = _Clients(plan, outcomes, kept, start)
    try:
        async with asyncio.timeout(plan.limit):
            await (clients.closed_loop() if plan.clients else clients.open_loop())
    except TimeoutError:
        pass  # their status says so
    wall = max((one.ended for one in outcomes), default=0.0)
    measured = Measured(outcomes, wall, time.process_time() - cpu)
    for number, data in kept.items():
        (Path(plan.folder) / str(number)).write_bytes(data)
    return measured


class _Clients:
    """All who ask. Times are written to `outcomes` as they are known."""

    def __init__(
        self, plan: Plan, outcomes: list[Outcome], kept: dict[int, bytes], start: float
    ) -> None:
        self._plan, self._outcomes, self._kept, self._start = plan, outcomes, kept, start

    async def closed_loop(self) -> None:
        numbers = iter(range(len(self._plan.shots)))
        await asyncio.gather(*(self._client(numbers) for _ in range(self._plan.clients)))

    async def _client(self, numbers: Iterator[int]) -> None:
        connection = Connection(self._plan.port)
        try:
            for number in numbers:
                self._outcomes[number].due = self._now()
                await self._one(number, connection)
        finally:
            connection.close()

    async def open_loop(self) -> None:
        await asyncio.gather(*(self._stranger(number) for number in range(len(self._outcomes))))

    async def _stranger(self, number: int) -> None:
        await asyncio.sleep(self._plan.shots[number].due - self._now())
        connection = Connection(self._plan.port)
        try:
            await self._one(number, connection)
        finally:
            connection.close()

    async def _one(self, number: int, connection: Connection) -> None:
        shot, outcome = self._plan.shots[number], self._outcomes[number]
        outcome.sent = self._now()
        try:
            async with asyncio.timeout(shot.leave_after):
                outcome.status = await self._answered(number, connection)
        except TimeoutError:
            outcome.status = LEFT
        except (OSError, EOFError):  # IncompleteReadError is an EOFError
            outcome.status = 0
        if outcome.status <= 0:
            connection.close()
        outcome.ended = self._now()

    async def _answered(self, number: int, connection: Connection) -> int:
        """The status of the answer, all of which is read."""
        shot, outcome = self._plan.shots[number], self._outcomes[number]
        parts: list[bytes] = []
        status, headers = await connection.send(shot.path, shot.body)
        outcome.job = headers.get("x-easel-job", "")
        async for block in connection.blocks():
            outcome.size += len(block)
            if shot.keep:
                parts.append(block)
            if shot.leave_step is not None and _told(block) >= shot.leave_step:
                return LEFT
        if shot.keep:
            self._kept[number] = b"".join(parts)
        return status

    def _now(self) -> float:
        return time.monotonic() - self._start


def _told(block: bytes) -> int:
    """The latest step that a block of events tells; 0 if none."""
    return max((int(found) for found in _STEP.findall(block)), default=0)


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(given))))
