"""Drawing at a server: the body that says the same as `Arguments`, and the way of a job through it."""

from __future__ import annotations

import base64
import json
from typing import Any

from ulid import ULID

from app.cli._drawing import Drawing
from app.cli._progress import Bars
from app.cli._server import Server
from app.cli._shell import stop
from app.domain.errors import EaselError, InvalidRequest, Unavailable
from app.domain.request import Arguments

Json = dict[str, Any]

_CANCEL_SECONDS = 10.0
_SAME = (
    "prompt",
    "model",
    "negative_prompt",
    "n",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "sampler",
    "seed",
    "strength",
    "upscale",
    "upscaler",
    "output_format",
    "metadata",
)
"""What bodies call like `Arguments`."""


def draw_at(server: Server, given: Arguments, drawing: Drawing, bars: Bars) -> None:
    """Have a job drawn there, follow it to its end, and fetch its pictures. Ctrl-C cancels it.

    Raises what `Server` raises, and the EaselError that the job ended with.
    """
    try:
        job_id = _submitted(server, given)
    except KeyboardInterrupt:
        stop("stopped while the job was sent; if it arrived, `easel jobs list` shows it", 130)
    drawing.begins(job_id)
    finish(server, drawing, bars, cancels=True)


def finish(server: Server, drawing: Drawing, bars: Bars, *, cancels: bool) -> None:
    """Follow a job that has begun, and fetch its pictures; `cancels` says what Ctrl-C does to it."""
    job_id = drawing.job_id or ""
    try:
        with bars:
            for numbered in server.follow(job_id, bars.trouble):
                drawing.heard(numbered)
        for image, path in drawing.wanted():
            drawing.write(image, path, server.picture(image.image_id))
    except KeyboardInterrupt:
        if drawing.ended or not cancels:
            stop(f"stopped; job {job_id} {'has ended' if drawing.ended else 'goes on'}", 130)
        stop(f"stopped; {_cancelled(server, job_id)}", 130)
    except Unavailable as error:
        if drawing.ended:
            raise
        raise Unavailable(
            f"{error.message} Job {job_id} may go on: easel jobs watch {job_id}"
        ) from error
    drawing.over()


def _cancelled(server: Server, job_id: str) -> str:
    try:
        job = server.ask("DELETE", f"/jobs/{job_id}", timeout=_CANCEL_SECONDS)
    except EaselError:
        return f"nobody could tell the server, where job {job_id} may go on"
    if job.get("status") == "cancelled":
        return f"job {job_id} was cancelled"
    return f"job {job_id} had ended"


def _submitted(server: Server, given: Arguments) -> str:
    """The id of a new job, which goes on whether or not anybody follows it."""
    body = body_of(given)
    if given.image is None:
        if given.control_image is not None:
            body["control"]["image"] = base64.b64encode(given.control_image).decode("ascii")
        job_id: str = server.submit("/jobs", body)["id"]
        return job_id
    # Jobs begin with words; those that begin with a picture come in as edits, and are left at once.
    # The key makes it one job, should it be sent twice.
    texts = {
        name: text if isinstance(text, str) else json.dumps(text) for name, text in body.items()
    }
    pictures = {
        "image": given.image,
        "mask": given.mask_image,
        "control_image": given.control_image,
    }
    return server.job_of(
        "POST",
        "/v1/images/edits",
        data={**texts, "stream": "true", "on_hang_up": "finish"},
        files={name: (name, data) for name, data in pictures.items() if data is not None},
        headers={"idempotency-key": str(ULID())},
    )


def body_of(given: Arguments) -> Json:
    """All but the pictures. Raises InvalidRequest for what cannot be said to a server."""
    if given.mask_image is not None and given.image is None:
        raise InvalidRequest("A mask needs an image to act on.", param="image")
    if given.control_image is not None and given.control is None:
        raise InvalidRequest("A control image needs a control network.", param="control")
    if len(given.styles) > 1:
        raise InvalidRequest("A server takes one style for each picture.", param="style")
    body = {name: getattr(given, name) for name in _SAME}
    body["style"] = given.styles[0] if given.styles else None
    body["partial_images"] = given.previews or None
    body["loras"] = [{"name": one.name, "scale": one.scale} for one in given.loras] or None
    if given.control is not None:
        scale = given.controlnet_conditioning_scale
        body["control"] = {"model": given.control, "controlnet_conditioning_scale": scale}
    return {name: value for name, value in body.items() if value is not None}
