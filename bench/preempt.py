"""An urgent picture arrives while a long one of the background class is drawn: what does it wait?

The same urgent request with nothing else running, and at any moment of a step of a job of 50 steps, in
turns. What it takes more is told in milliseconds and in steps of the job that it found there. That job
goes on to its end, and its picture must be that of an undisturbed run.
"""

from __future__ import annotations

import random
import statistics
import time
from itertools import pairwise

from app.engines.image_codec import Pixels
from bench.server import BUNDLED, Client, serving
from bench.stats import Row, in_turns, ms, percentile
from bench.wishes import Wish, bundled, farthest, pixels_of_answer

_ROUTE = "/v1/images/generations"
_STEPS = 50


class _Race:
    def __init__(self, port: int) -> None:
        card = bundled()["sketch"]
        self._port = port
        self._chance = random.Random(1)
        self._long = Wish(card, 1, 256, _STEPS).body(priority="background")
        self._urgent = Wish(card, 2, 128, 8).body(priority="interactive")
        self.steps: list[float] = []
        self.pictures: list[Pixels] = []

    def alone(self) -> float:
        time.sleep(0.1)
        return self._ask()

    def beside(self) -> float:
        """Seconds of the urgent request when it comes into a running job."""
        drawing = Client(self._port)
        events = drawing.events("POST", f"{_ROUTE}/stream", self._long)
        next(told for told in events if (told.get("step") or 0) >= 2)
        if self.steps:
            time.sleep(statistics.median(self.steps) * self._chance.uniform(1, 2))
        seconds = self._ask()
        self._finish(drawing, [], list(events))
        return seconds

    def undisturbed(self) -> None:
        drawing = Client(self._port)
        told = list(drawing.events("POST", f"{_ROUTE}/stream", self._long))
        times = [event["timestamp"] for event in told if event.get("step")]
        self._finish(drawing, times, told)

    def _ask(self) -> float:
        client = Client(self._port)
        client.ask("GET", "/health")
        seconds = client.timed("POST", _ROUTE, self._urgent)
        client.hang_up()
        return seconds

    def _finish(self, drawing: Client, times: list[float], told: list[dict[str, object]]) -> None:
        self.steps += [after - before for before, after in pairwise(times)]
        self.pictures.append(pixels_of_answer(told[-1]))
        drawing.hang_up()


def run(*, quick: bool) -> tuple[list[Row], bool]:
    with serving({**BUNDLED, "EASEL_PRELOAD": '["sketch"]'}) as port:
        race = _Race(port)
        for _ in range(2):  # both kinds pay for lazy set-up once
            race.alone()
            race.undisturbed()
        race.steps.clear()
        race.undisturbed()
        waits = in_turns(race.beside, race.alone, 2 if quick else 10)
    step, usual = statistics.median(race.steps), statistics.median(waits.second)
    extra = [seconds - usual for seconds in waits.first]
    differing = sum(farthest(picture, race.pictures[0]) > 0 for picture in race.pictures[1:])
    worst = max(extra)
    return [
        Row("preempt", f"one step of the background job, 256x256, {_STEPS} steps", ms(race.steps)),
        Row("preempt", "urgent 128x128, 8 steps: alone", ms(waits.second)),
        Row("preempt", "urgent, into the background job", ms(waits.first)),
        Row(
            "preempt",
            "extra wait, median / p90 / longest",
            f"{statistics.median(extra) * 1e3:.1f} / {percentile(extra, 0.9) * 1e3:.1f} / "
            f"{worst * 1e3:.1f} ms; the longest is {worst / step:.2f} steps",
        ),
        Row(
            "preempt",
            "longest, less one step",
            f"{(worst - step) * 1e3:.1f} ms",
            "<= 20 ms (G10)",
        ),
        Row("preempt", "background pictures changed by it", str(differing), "0"),
    ], differing == 0
