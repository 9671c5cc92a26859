"""The load generator tells the truth: against a server whose times are known, and the fake gateway."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from bench.eta import deviations, errors
from bench.load import LEFT, STREAM, Measured, Outcome, Plan, Shot, fire, run
from bench.server import started
from bench.stats import Compared, percentile, rates, spread
from bench.traces import changes, fewest_changes, mixed, poisson, zipf
from tests.gateway import Gateway

_WITH_A_CHILD = """
import pathlib, subprocess, sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
child = subprocess.Popen(["sleep", "300"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
HTTPServer(("127.0.0.1", int(sys.argv[2])), SimpleHTTPRequestHandler).serve_forever()
"""


@asynccontextmanager
async def slow_server(seconds: float) -> AsyncIterator[int]:
    """Answers one request at a time, each after `seconds`."""
    lock = asyncio.Lock()
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)
                async with lock:
                    await asyncio.sleep(seconds)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + bytes(100_000))
        writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer))
        talks.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks)
        await asyncio.sleep(0.01)  # aborted transports close in the next round of the loop


class TestTraces:
    def test_poisson_arrivals_are_the_same_for_a_seed_and_as_many_as_asked_for(self) -> None:
        times = poisson(50.0, 100.0, seed=1)

        assert times == poisson(50.0, 100.0, seed=1) != poisson(50.0, 100.0, seed=2)
        assert len(times) == pytest.approx(5000, rel=0.05)
        gaps = [after - before for before, after in pairwise(times)]
        assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)

    def test_shares_of_a_mixture_are_exact(self) -> None:
        drawn = mixed([("a", 7), ("b", 3)], 100, seed=1)

        assert (drawn.count("a"), drawn.count("b")) == (70, 30)
        assert drawn != sorted(drawn)

    def test_the_second_of_zipf_has_less_than_half(self) -> None:
        (_, first), (_, second) = zipf(["a", "b"])

        assert first / second == pytest.approx(2**1.1)

    def test_changes(self) -> None:
        assert changes("aabba") == 2
        assert changes("") == 0


class TestFigures:
    def test_a_server_changes_only_when_nobody_waits_for_what_it_holds(self) -> None:
        at_once = [(0.0, one) for one in "abababab"]
        assert fewest_changes(at_once, 1.0, 0.5) == 1
        one_by_one = [(2.0 * number, one) for number, one in enumerate("abababab")]
        assert fewest_changes(one_by_one, 1.0, 0.5) == 7  # it cannot know that more will come
        assert fewest_changes([(0.0, "a"), (0.1, "b"), (0.2, "a"), (0.9, "b")], 0.5, 0.1) == 1
        late = [(0.0, "a"), (0.1, "b"), (1.2, "a"), (1.3, "b")]
        assert fewest_changes(late, 0.5, 0.1) == 3
        assert fewest_changes(late, 0.5, 0.3) == 2  # the last b came while a change was under way

    def test_percentiles_and_spread(self) -> None:
        assert percentile(range(1, 101), 0.95) == 95
        assert spread([1, 2, 3, 4, 100]) == 1

    def test_rates_are_those_of_the_medians(self) -> None:
        told = rates(Compared([0.5, 0.5, 0.5], [1.0, 1.0, 2.0]))

        assert told == "2.00 ± 0.00 times (2.00 / 1.00 a second)"

    def test_eta_errors_count_down_from_what_was_last_told(self) -> None:
        # 10 s in all, 8 were promised; after 4 s it was said that 7 remained: 6 at half.
        at_submission, at_half = errors(100.0, 8.0, [(104.0, 7.0), (106.0, 1.0)], 110.0)

        assert at_submission == pytest.approx(0.2)
        assert at_half == pytest.approx(0.2)

    def test_times_deviate_from_the_median_of_their_kind(self) -> None:
        assert deviations([[2.0, 1.0, 2.5], [3.0, 9.0]]) == [0.0, 0.5, 0.25]

    def test_what_was_not_answered_took_for_ever(self) -> None:
        lost = Measured([Outcome("", 0.0, 0.0, 1.0, 200), Outcome("", 0.0)], 1.0, 0.0)

        assert lost.latencies() == [1.0, float("inf")]
        assert lost.doubts == "1 of 2 without a picture"


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked for does not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


class TestLoad:
    async def test_an_open_loop_counts_from_when_a_request_was_due(self) -> None:
        shots = [Shot({}, due=number * 0.01) for number in range(10)]
        async with slow_server(0.05) as port:
            measured = await run(Plan(port, shots))

        waits = measured.latencies()
        # The tenth was due at 0.09 and is answered at 0.5: nine stand in front of it.
        assert waits[0] == pytest.approx(0.05, abs=0.1)
        assert waits[-1] >= 0.4
        assert waits == sorted(waits)
        assert [one.size for one in measured.outcomes] == [100_000] * 10

    async def test_a_closed_loop_has_as_many_under_way_as_clients(self) -> None:
        async with slow_server(0.05) as port:
            measured = await run(Plan(port, [Shot({})] * 9, clients=3))

        ordered = sorted(measured.outcomes, key=lambda one: one.sent)
        assert sum(one.sent < 0.045 for one in ordered) == 3
        assert measured.wall >= 0.45
        assert all(one.due <= one.sent for one in ordered)

    async def test_it_ends_when_its_time_is_over(self) -> None:
        async with slow_server(5.0) as port:
            measured = await run(Plan(port, [Shot({})] * 3, clients=1, limit=0.2))

        assert [one.status for one in measured.outcomes] == [0, 0, 0]

    async def test_clients_hang_up(self) -> None:
        async with slow_server(1.0) as port:
            measured = await run(Plan(port, [Shot({}, leave_after=0.1)]))

        assert measured.outcomes[0].status == LEFT
        assert measured.outcomes[0].ended < 0.9

    async def test_nobody_there_is_no_picture(self) -> None:
        async with slow_server(0.0) as port:
            pass
        measured = await run(Plan(port, [Shot({})]))

        assert measured.outcomes[0].status == 0

    def test_too_much_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at most"):
            fire(Plan(1, [Shot({})] * 5001))

    def test_what_a_server_started_ends_with_it(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", _WITH_A_CHILD, str(tmp_path / "pid")]
        with started(command, dict(os.environ), tmp_path / "log", "/"):
            child = int((tmp_path / "pid").read_text())
            assert lives(child)
        deadline = time.monotonic() + 5
        while lives(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not lives(child)

    def test_in_a_process_of_its_own_against_the_gateway(self, fake_gateway: Gateway) -> None:
        body = {"prompt": "a cat", "size": "64x64", "steps": 4, "model": "fake"}
        shots = [Shot(body), Shot({"prompt": ""}), Shot(body, path=STREAM, leave_step=2)]

        measured = fire(Plan(fake_gateway.port, shots, clients=1))

        first, second, third = measured.outcomes
        assert (first.status, second.status) == (200, 400)
        assert first.size > 0
        assert first.job
        assert third.status == LEFT
