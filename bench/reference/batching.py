"""LitServe with request batching: up to eight requests wait 5 ms for each other and are drawn in one
pipeline call, those of them that differ in prompt and seed only.

    python -m bench.reference.batching PORT
"""

from __future__ import annotations

import sys
from typing import Any

import litserve  # type: ignore[import-not-found]
import litserve.server  # type: ignore[import-not-found]
from starlette.responses import Response

from bench.reference.pipelines import Models

litserve.server._MCP_AVAILABLE = False  # noqa: SLF001 - it takes the project's newer mcp for its own (0.2.19)

_MOST = 8
_WAIT = 0.005


class Drawing(litserve.LitAPI):  # type: ignore[misc]
    """LitServe calls `setup` once in its worker process and the rest for each batch."""

    def setup(self, device: str) -> None:
        self.models = Models()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, inputs: list[dict[str, Any]]) -> list[bytes]:
        alike: dict[tuple[Any, ...], list[int]] = {}
        for place, body in enumerate(inputs):
            key = (body["model"], body["size"], body["steps"])
            alike.setdefault(key, []).append(place)
        answers = [b""] * len(inputs)
        for places in alike.values():
            drawn = self.models.draw([inputs[place] for place in places])
            for place, answer in zip(places, drawn, strict=True):
                answers[place] = answer
        return answers

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Any:
        return Response(output, media_type="application/json")


# It asks these two what they take and give, and is told in words, as annotations are no types here.
Drawing.decode_request.__annotations__.clear()
Drawing.encode_response.__annotations__.clear()


if __name__ == "__main__":
    drawing = Drawing(max_batch_size=_MOST, batch_timeout=_WAIT, api_path="/v1/images/generations")
    server = litserve.LitServer(drawing, accelerator="cpu", timeout=False)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
