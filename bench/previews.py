"""What previews cost, and how soon the first one is there.

The same streamed job with three partial images and with none, in turns; and the time between the step
that a partial image shows, as told by the server's own clock, and its arrival at the client.
"""

from __future__ import annotations

import time

from bench.server import BUNDLED, Client, serving
from bench.stats import Row, in_turns, ms, verdict

_BODY = {
    "prompt": "a red circle on a white background",
    "model": "sketch",
    "steps": 20,
    "seed": 1,
    "stream": True,
}


def run(*, quick: bool) -> tuple[list[Row], bool]:
    late: list[float] = []
    with serving(BUNDLED) as port:

        def draw(partials: int) -> float:
            client = Client(port)
            start = time.perf_counter()
            body = {**_BODY, "partial_images": partials}
            late.extend(
                time.time() - event["timestamp"]
                for event in client.events("POST", "/v1/images/generations", body)
                if event["type"].endswith("partial_image")
            )
            client.hang_up()
            return time.perf_counter() - start

        draw(3)
        rounds = 3 if quick else 8
        same = in_turns(lambda: draw(0), lambda: draw(0), rounds)
        cost = in_turns(lambda: draw(3), lambda: draw(0), rounds)
    return [
        Row("previews", "three against none, 20 steps", verdict(cost, same), "<= 1.03"),
        Row("previews", "a whole job with none", ms(cost.second)),
        Row(
            "previews",
            "from the step to the client",
            f"{ms(late)}, longest {max(late) * 1e3:.2f} ms",
            "<= 50 ms",
        ),
    ], True
