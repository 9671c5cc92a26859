"""The server of every tutorial: FastAPI, a pipeline, Pillow, base64, and a lock around it all.

    python -m bench.reference.tutorial PORT

First come, first served: asyncio's lock wakes its waiters in order. A request is drawn to its end
whether or not its client is still there. The pipeline has one thread of its own, which spares it a new
OpenMP team for each picture; the web loop stays free. Both are kinder than most tutorials.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI, Response  # type: ignore[import-not-found]
from pydantic import BaseModel

from bench.reference.pipelines import Models


class Body(BaseModel):
    model: str
    prompt: str
    seed: int
    size: str
    steps: int


def application() -> Any:
    thread = ThreadPoolExecutor(1)
    models = thread.submit(Models).result()
    lock = asyncio.Lock()

    async def generate(body: Body) -> Any:
        async with lock:
            loop = asyncio.get_running_loop()
            (answer,) = await loop.run_in_executor(thread, models.draw, [body.model_dump()])
        return Response(answer, media_type="application/json")

    async def ready() -> dict[str, bool]:
        return {"ready": True}

    app = FastAPI()
    # By hand and not from annotations: those of a nested function cannot be looked up by name.
    generate.__annotations__ = {"body": Body}
    app.post("/v1/images/generations", response_model=None)(generate)
    app.get("/ready", response_model=None)(ready)
    return app


if __name__ == "__main__":
    uvicorn.run(application(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
