"""The part of AUTOMATIC1111's `/sdapi/v1` that other programs use, Open WebUI first.

That API belongs to a program for one person: one checkpoint, one job, one `progress`. Here the
checkpoint is one for all, as Open WebUI expects, but `progress` and `interrupt` see only the jobs
that the same caller sent through this door. What clients may rely on is told in docs/a1111.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import msgspec
from litestar import Request, Router, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, JSONBody
from msgspec.structs import replace
from pydantic import Field, ValidationError

from app.api._access import caller_of as caller_of_route
from app.api._access import credential
from app.api._control import ControlFields
from app.api._fields import PictureFields
from app.api._http import DoorSettings, require_json, wait_for
from app.api._jobs import events_of
from app.api._lora_shapes import WebUiLora
from app.api._models import at_hand
from app.api._owner import owner_of
from app.api._pictures import from_base64, to_base64, upright_size, without_alpha
from app.api._schema import BODY, WAITS, answers
from app.api._shapes import (
    Nothing,
    WebUiModel,
    WebUiOptions,
    WebUiPictures,
    WebUiProgress,
    WebUiSampler,
    WebUiScheduler,
    WebUiStyle,
)
from app.domain import lora, picture_facts, samplers
from app.domain.errors import InvalidRequest
from app.domain.events import Progressed
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.domain.request import Arguments
from app.service import ImageService

_PREVIEWS = 3
"""Unfinished pictures of each image, for `current_image`."""

_SCRIPTS = "alwayson_scripts"

AnyRequest = Request[Any, Any, Any]
Json = dict[str, Any]
AtConsole = NamedDependency["Console"]


class Seat(msgspec.Struct, eq=False):
    """A job that its caller waits for, its last step, and the newest picture of it in the making."""

    caller: str
    job: Job
    step: int = 0
    preview: bytes | None = None


class Console:
    """What the original keeps in global variables, for one application: checkpoint and jobs."""

    def __init__(self, service: ImageService) -> None:
        self.service = service
        self._checkpoint: str | None = None
        self._seats: list[Seat] = []

    @property
    def checkpoint(self) -> ModelCard:
        return self.service.model(self._checkpoint)

    @property
    def models(self) -> list[ModelCard]:
        """Those whose files are here, or on their way."""
        shelf = self.service.shelf
        return [card for card in self.service.models() if at_hand(shelf.state(card.id))]

    def choose(self, name: object) -> None:
        """Take an id or an alias as checkpoint; any other name changes nothing."""
        for card in self.models:
            if name == card.id or name in card.aliases:
                self._checkpoint = card.id

    def of(self, caller: str) -> list[Seat]:
        """The caller's unfinished jobs: waiting ones, then running ones, both oldest first."""
        own = [seat for seat in self._seats if seat.caller == caller and not seat.job.ended]
        return sorted(own, key=lambda seat: seat.job.status == "running")

    async def draw(self, request: AnyRequest, data: TextBody, owner: str) -> Json:
        """Submit, wait and answer. Raises what `submit` and `wait_for` raise."""
        job = await self.service.submit(data.arguments_at(self), owner=owner, door="a1111")
        seat = Seat(caller_of(request), job)
        self._seats.append(seat)
        watching = asyncio.create_task(self._watch(seat))
        try:
            await wait_for(request, self.service, job)
        finally:
            self._seats.remove(seat)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return await _answer(job, data, self.service)

    async def _watch(self, seat: Seat) -> None:
        async for numbered in events_of(self.service, seat.job):
            if isinstance(event := numbered.event, Progressed):
                seat.step = event.step or seat.step
                seat.preview = event.preview or seat.preview


def caller_of(request: AnyRequest) -> str:
    """Who asks: a digest of the address, of what was sent to log in, and of whose jobs these are."""
    address = request.client.host if request.client else ""
    login = f"{credential(request.headers)} {request.headers.get('authorization', '')}"
    owner = caller_of_route(request).owner
    return hashlib.sha256(f"{address} {login} {owner}".encode()).hexdigest()


class TextBody(PictureFields):
    """A1111's fields, and Easel's own beside them. `scheduler` is a noise schedule here."""

    ALIASES: ClassVar[dict[str, tuple[str, ...]]] = {**PictureFields.ALIASES, "sampler": ()}

    prompt: str = ""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    n_iter: Annotated[int, Field(ge=1)] | None = None
    sampler_index: str | None = None
    override_settings: Json | None = None
    styles: list[str] | None = None
    alwayson_scripts: Json | None = None

    def arguments_at(self, console: Console) -> Arguments:
        """The same in diffusers' names, with the checkpoint as model if no other is named."""
        named = (self.override_settings or {}).get("sd_model_checkpoint")
        card = console.service.model(str(named or self.model or console.checkpoint.id))
        given = self.to_arguments()
        if (control := _control(self.alwayson_scripts or {})) is not None:
            given = control.onto(given)
        prompt, tagged = lora.out_of_prompt(given.prompt)
        return replace(
            given,
            prompt=prompt,
            loras=(*given.loras, *(one for one in tagged if console.service.loras.knows(one.name))),
            styles=(*given.styles, *filter(console.service.styles.knows, self.styles or ())),
            model=card.id,
            n=(self.batch_size or 1) * (self.n_iter or 1),
            sampler=self._sampler_of(card),
            output_format=None,  # clients take the pictures for PNG, which is the default
            previews=_PREVIEWS,
        )

    def _sampler_of(self, card: ModelCard) -> str | None:
        """`"DPM++ 2M"` on the schedule `"Karras"` is `dpmpp_2m_karras`, where there is such a one."""
        given = self.sampler_name or self.sampler_index or self.sampler
        name = samplers.normalise(given or card.defaults.sampler)
        scheduled = f"{name}_{samplers.normalise(self.scheduler or '')}"
        return scheduled if scheduled in card.samplers else given


def _control(scripts: Json) -> ControlFields | None:
    """What the ControlNet extension is asked for: one unit, and a picture that is ready-made.

    Raises InvalidRequest.
    """
    try:
        asked = [script for name, script in scripts.items() if name.lower() == "controlnet"]
        script: Json = asked[0] if asked else {}
        units = [unit for unit in script.get("args", []) if unit.get("enabled", True)]
        if not units:
            return None
        if len(units) > 1:
            raise InvalidRequest("Only one ControlNet unit at a time.", param=_SCRIPTS)
        (unit,) = units
        if str(unit.get("module") or "none").lower() != "none":
            raise InvalidRequest(
                "No picture is prepared here: send it ready-made, with module none.", param=_SCRIPTS
            )
        return ControlFields(
            model=unit.get("model"),
            image=unit.get("image") or unit.get("input_image"),
            controlnet_conditioning_scale=unit.get("weight"),
            control_guidance_start=unit.get("guidance_start"),
            control_guidance_end=unit.get("guidance_end"),
        )
    except (AttributeError, TypeError, ValidationError) as error:
        raise InvalidRequest(
            "The controlnet script wants args: a list with one object.", param=_SCRIPTS
        ) from error


class PictureBody(TextBody):
    """The same with `init_images` and `mask`, as base64."""

    init_images: list[str] | None = None
    mask: str | None = None
    inpainting_mask_invert: int | bool | None = None

    def arguments_at(self, console: Console) -> Arguments:
        if self.inpainting_mask_invert:
            raise InvalidRequest("Invert the mask first.", param="inpainting_mask_invert")
        if len(images := self.init_images or []) != 1:
            text = f"Send exactly one image; {len(images)} came. No model here combines several."
            raise InvalidRequest(text, param="init_images")
        image = from_base64(images[0], "init_images")
        return replace(
            super().arguments_at(console),
            image=image,
            image_size=upright_size(image, "init_images"),
            # Transparent would mean *paint* to the engine, and *keep* to A1111.
            mask_image=without_alpha(from_base64(self.mask, "mask"), "mask") if self.mask else None,
        )


@get("/options", **answers(WebUiOptions, access="any"))
async def options(console: AtConsole) -> dict[str, str]:
    """The one setting that there is, and what clients read beside it."""
    return {"sd_model_checkpoint": console.checkpoint.id, "sd_checkpoint_hash": ""}


@post(
    "/options", status_code=200, guards=[require_json], **answers(Nothing, *BODY, access="generate")
)
async def set_options(data: JSONBody[Json], console: AtConsole) -> dict[str, str]:
    """Choose the model of calls that name none; an unknown one and other settings do nothing."""
    console.choose(data.get("sd_model_checkpoint"))
    return {}


@get("/sd-models", **answers(list[WebUiModel], access="any"))
async def sd_models(console: AtConsole) -> list[dict[str, str | None]]:
    """Every model that is at hand under its id; where it lies is not told."""
    rest = {"hash": None, "sha256": None, "config": None}
    ids = [card.id for card in console.models]
    return [{"title": name, "model_name": name, "filename": name, **rest} for name in ids]


@get("/samplers", **answers(list[WebUiSampler], access="any"))
async def list_samplers(console: AtConsole) -> list[Json]:
    """Those of the chosen checkpoint."""
    known = console.checkpoint.samplers
    return [{"name": samplers.spelled(name), "aliases": [name], "options": {}} for name in known]


@get("/prompt-styles", **answers(list[WebUiStyle], access="any"))
async def prompt_styles(console: AtConsole) -> list[Json]:
    """Each style, and its words around `{prompt}`."""
    return [
        {"name": name, "prompt": style.around("{prompt}"), "negative_prompt": style.negative}
        for name, style in console.service.styles.items()
    ]


@get("/loras", **answers(list[WebUiLora], access="any"))
async def list_loras(console: AtConsole) -> list[Json]:
    """Those that a prompt may name; where they lie is not told."""
    names = await asyncio.to_thread(console.service.loras.names)
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]


@get("/schedulers", **answers(list[WebUiScheduler], access="any"))
async def schedulers() -> list[Json]:
    """The noise schedules that can be chosen beside a sampler."""
    rest = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
    return [{"name": name.lower(), "label": name, **rest} for name in ("Automatic", "Karras")]


@post(
    "/txt2img",
    status_code=200,
    guards=[require_json],
    **answers(WebUiPictures, *WAITS, access="generate"),
)
async def txt2img(
    data: JSONBody[TextBody],
    request: AnyRequest,
    console: AtConsole,
    doors: NamedDependency[DoorSettings],
) -> Json:
    """Draw pictures from text."""
    return await console.draw(request, data, owner_of(request, doors))


@post(
    "/img2img",
    status_code=200,
    guards=[require_json],
    **answers(WebUiPictures, *WAITS, access="generate"),
)
async def img2img(
    data: JSONBody[PictureBody],
    request: AnyRequest,
    console: AtConsole,
    doors: NamedDependency[DoorSettings],
) -> Json:
    """Draw a picture anew, all of it or where the mask is white."""
    return await console.draw(request, data, owner_of(request, doors))


@get("/progress", **answers(WebUiProgress, 400, access="generate"))
async def progress(
    request: AnyRequest, console: AtConsole, skip_current_image: FromQuery[bool] = False
) -> Json:
    """How far the caller's newest job is, running ones first; zeros when there is none."""
    seat = next(reversed(console.of(caller_of(request))), None)
    preview = seat.preview if seat and not skip_current_image else None
    return {
        "progress": seat.job.fraction if seat else 0.0,
        "eta_relative": seat.job.eta_at(time.time()) if seat else 0.0,
        "state": _state(seat),
        "current_image": to_base64(preview) if preview else None,
        "textinfo": None,
    }


@post("/interrupt", status_code=200, **answers(Nothing, access="generate"))
async def interrupt(request: AnyRequest, console: AtConsole) -> dict[str, str]:
    """Cancel the caller's jobs of this door, waiting ones too; the calls that wait answer 422."""
    for seat in console.of(caller_of(request)):
        await console.service.cancel(seat.job.id)
    return {}


def door(console: Console, max_upload: int) -> Router:
    """All routes, around one console; a body with pictures may have `max_upload` bytes."""
    drawing = [txt2img, img2img]
    uploads = Router("/", route_handlers=drawing, request_max_body_size=max_upload)
    listed = [options, set_options, sd_models, list_samplers, schedulers, prompt_styles, list_loras]
    given = {"console": Provide(lambda: console, sync_to_thread=False)}
    rest = Router("/", route_handlers=[*listed, progress, interrupt])
    return Router("/sdapi/v1", route_handlers=[rest, uploads], dependencies=given)


async def _answer(job: Job, data: TextBody, service: ImageService) -> Json:
    """The pictures, what was drawn, and `info`: the same as text, which clients keep with them."""
    drawn, images = job.request, [job.images[index] for index in sorted(job.images)]
    told: Json = {
        "prompt": drawn.prompt,
        "negative_prompt": drawn.negative_prompt,
        "seed": drawn.seed,
        "steps": drawn.num_inference_steps,
        "cfg_scale": drawn.guidance_scale,
        "width": drawn.width,
        "height": drawn.height,
        "sampler_name": samplers.spelled(drawn.sampler),
        "denoising_strength": None if drawn.task == "text2image" else drawn.strength,
        "batch_size": data.batch_size or 1,
        "n_iter": data.n_iter or 1,
    }
    info = told | {
        "all_prompts": [drawn.prompt] * len(images),
        "all_negative_prompts": [drawn.negative_prompt] * len(images),
        "all_seeds": [image.seed for image in images],
        "sd_model_name": drawn.model,
        "requested_model": drawn.asked,
        "infotexts": [picture_facts.parameters(drawn, image.seed) for image in images],
    }
    return {
        "images": [to_base64((await service.image(image.image_id)).data) for image in images],
        "parameters": told | {"override_settings": {"sd_model_checkpoint": drawn.model}},
        "info": msgspec.json.encode(info).decode(),
    }


def _state(seat: Seat | None) -> Json:
    """Images are drawn one by one, so each is a batch of the original, with steps of its own."""
    state: Json = dict.fromkeys(("job_count", "job_no", "sampling_step", "sampling_steps"), 0)
    state |= {"skipped": False, "interrupted": False, "job": "", "job_timestamp": "0"}
    if seat is None:
        return state
    job, steps = seat.job, seat.job.request.steps_per_image
    number, before = divmod(seat.step - 1, steps) if seat.step else (0, -1)
    return state | {
        "job": job.id,
        "job_timestamp": datetime.fromtimestamp(job.created, UTC).strftime("%Y%m%d%H%M%S"),
        "job_count": job.request.n,
        "job_no": number,
        "sampling_step": before + 1,
        "sampling_steps": steps,
    }
