"""Stock pipelines of every kind, drawn through views, stand-ins and the turnstile.

Promised: a picture that nobody shares steps with is, bit for bit, the stock pipeline's; pictures that
share them have the latents of the stock pipeline up to rounding (relative 1e-5), whatever prompt,
seed, number of steps, guidance, sampler and odd option each has; and they do share.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from app.domain.events import EngineEvent, ImageFinished, StepFinished
from app.domain.pipelines import Task
from app.domain.request import GenerationRequest
from app.engines import flux, stable_diffusion, turnstile
from app.engines.base import ALONE, Sharing
from app.engines.forward_batcher import ForwardBatcher
from app.engines.image_codec import Pixels
from app.engines.pipeline_view import one_at_a_time, view_of
from app.engines.prompt_cache import PromptCache
from app.engines.run_gate import RunGate
from app.engines.step_gate import ImageGate
from app.engines.turnstile import Turnstile
from tests import zoo
from tests.painter import Painter, pictures
from tests.pictures import pixels

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

Wish = Mapping[str, Any]

SIDE = 32
PICTURE = Image.fromarray(
    np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
)
MASK = Image.fromarray(np.pad(np.full((SIDE, SIDE // 2), 255, np.uint8), ((0, 0), (SIDE // 2, 0))))
SIZE: Wish = {"height": SIDE, "width": SIDE}

GUIDED: tuple[Wish, ...] = (
    {"prompt": "a red circle", "num_inference_steps": 5, "guidance_scale": 4.0},
    {
        "prompt": "a blue square",
        "negative_prompt": "red",
        "num_inference_steps": 3,
        "guidance_scale": 6.0,
        "sampler": "EulerAncestralDiscreteScheduler",
    },
    {
        "prompt": "three stars",
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "sampler": "DPMSolverMultistepScheduler",
    },
    {
        "prompt": "one green line",
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "sampler": "HeunDiscreteScheduler",
    },
    {
        "prompt": "noise",
        "num_inference_steps": 6,
        "guidance_scale": 2.0,
        "eta": 0.7,
        "sampler": "DDIMScheduler",
    },
)
RESCALED: tuple[Wish, ...] = (*GUIDED, {**GUIDED[2], "guidance_rescale": 0.6})
DISTILLED: tuple[Wish, ...] = (
    {"prompt": "a red circle", "num_inference_steps": 5, "guidance_scale": 3.5},
    {"prompt": "a blue square", "num_inference_steps": 3, "guidance_scale": 1.0},
    {
        "prompt": "three stars",
        "negative_prompt": "red",
        "num_inference_steps": 4,
        "true_cfg_scale": 2.0,
    },
)
FLOW: tuple[Wish, ...] = (
    {"prompt": "a red circle", "num_inference_steps": 5, "guidance_scale": 4.0},
    {"prompt": "a blue square", "num_inference_steps": 3, "guidance_scale": 1.0},
    {
        "prompt": "three stars",
        "negative_prompt": "red",
        "num_inference_steps": 4,
        "guidance_scale": 6.0,
        "clip_skip": 1,
    },
    {
        "prompt": "noise",
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "skip_guidance_layers": [1],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    },
)


@dataclass(frozen=True)
class Kind:
    """What a pipeline is asked for: arguments that all its pictures have, and those of each."""

    wishes: tuple[Wish, ...]
    always: Wish
    task: Task = "text2image"


KINDS: Mapping[str, Kind] = {
    "StableDiffusionPipeline": Kind(RESCALED, SIZE),
    "StableDiffusionImg2ImgPipeline": Kind(
        GUIDED, {"image": PICTURE, "strength": 0.8}, "image2image"
    ),
    "StableDiffusionInpaintPipeline": Kind(
        GUIDED, {**SIZE, "image": PICTURE, "mask_image": MASK, "strength": 0.9}, "inpaint"
    ),
    "StableDiffusionControlNetPipeline": Kind(
        (*GUIDED, {**GUIDED[0], "guess_mode": True, "controlnet_conditioning_scale": 0.5}),
        {**SIZE, "image": PICTURE},
    ),
    "StableDiffusionXLControlNetPipeline": Kind(GUIDED, {**SIZE, "image": PICTURE}),
    "FluxControlNetPipeline": Kind(
        DISTILLED, {**SIZE, "max_sequence_length": 16, "control_image": PICTURE}
    ),
    "StableDiffusionXLPipeline": Kind(
        (
            *RESCALED,
            {**GUIDED[0], "crops_coords_top_left": (8, 0), "negative_prompt_2": "red"},
            {**GUIDED[1], "clip_skip": 1, "denoising_end": 0.7},
        ),
        SIZE,
    ),
    "StableDiffusionXLImg2ImgPipeline": Kind(
        (*RESCALED, {**GUIDED[0], "aesthetic_score": 3.0}),
        {"image": PICTURE, "strength": 0.8},
        "image2image",
    ),
    "StableDiffusion3Pipeline": Kind(FLOW, {**SIZE, "max_sequence_length": 16}),
    "FluxPipeline": Kind(DISTILLED, {**SIZE, "max_sequence_length": 16}),
    "FluxImg2ImgPipeline": Kind(
        DISTILLED,
        {**SIZE, "max_sequence_length": 16, "image": PICTURE, "strength": 0.8},
        "image2image",
    ),
}


@dataclass(frozen=True)
class Drawn:
    picture: Tensor
    latents: Tensor


StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


class Studio:
    """One kind of pipeline, drawn plainly and through views."""

    def __init__(self, kind: str, adapted: bool) -> None:
        self.stock = zoo.pipeline(kind)
        self.kind = KINDS[kind]
        self.denoiser = zoo.denoiser(self.stock)
        self.wishes = self.kind.wishes
        if adapted:  # one wants less of the adapter
            part = "joint" if hasattr(self.stock, "transformer") else "cross"
            less = {f"{part}_attention_kwargs": {"scale": 0.5}}
            self.wishes = (*self.wishes, {**self.wishes[0], **less})
        self.prompts = PromptCache()
        name = "unet" if hasattr(self.stock, "unet") else "transformer"
        self.batchers = {name: ForwardBatcher(self.denoiser)}
        self.plain = [self.plainly(index) for index in range(len(self.wishes))]

    def scheduler(self, index: int) -> Any:
        config = self.stock.scheduler.config
        name = self.wishes[index].get("sampler", type(self.stock.scheduler).__name__)
        return getattr(diffusers, name).from_config(config)

    @torch.inference_mode()
    def draw(self, pipeline: Any, index: int, then: StepEnd = lambda *given: {}) -> Drawn:
        kept: list[Tensor] = []

        def step_end(view: Any, at: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            kept.append(tensors["latents"].clone())
            return then(view, at, timestep, tensors)

        given = {name: value for name, value in self.wishes[index].items() if name != "sampler"}
        picture = pipeline(
            **self.kind.always,
            **given,
            generator=torch.Generator().manual_seed(40 + index),
            output_type="pt",
            callback_on_step_end=step_end,
            callback_on_step_end_tensor_inputs=["latents"],
        ).images[0]
        return Drawn(picture, kept[-1])

    def plainly(self, index: int) -> Drawn:
        parts = {**self.stock.components, "scheduler": self.scheduler(index)}
        if "safety_checker" in parts:
            parts["requires_safety_checker"] = False
        stock = type(self.stock)(**parts)
        stock.set_progress_bar_config(disable=True)
        return self.draw(stock, index)

    def through_a_view(
        self, index: int, one: Turnstile, sharing: Sharing = ALONE
    ) -> tuple[Drawn, list[StepFinished]]:
        told: list[StepFinished] = []

        def report(event: EngineEvent) -> None:
            if isinstance(event, StepFinished):
                told.append(event)

        with one.rider(sharing) as rider:
            request = self.request(index)
            gate = ImageGate(RunGate(report, request), request, 0, rider)
            view = view_of(
                self.stock, self.scheduler(index), gate, rider, self.batchers, self.prompts
            )
            drawn = self.draw(view, index, gate.on_step_end)
        assert told[-1].step == request.total_steps
        return drawn, told

    def request(self, index: int) -> GenerationRequest:
        return GenerationRequest(
            model="",
            family="flux" if "Flux" in type(self.stock).__name__ else "stable_diffusion",
            task=self.kind.task,
            prompt="",
            negative_prompt="",
            n=1,
            width=SIDE,
            height=SIDE,
            num_inference_steps=self.wishes[index]["num_inference_steps"],
            guidance_scale=1.0,
            true_cfg_scale=1.0,
            sampler="",
            seed=0,
            strength=self.kind.always.get("strength", 1.0),
            output_format="png",
            output_compression=100,
            max_sequence_length=16,
        )


@pytest.fixture(scope="module", autouse=True)
def _one_core() -> Iterator[None]:
    """Tiny tensors are drawn faster by one core, the more so if others use the second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["", "with a LoRA"])
def lora(request: pytest.FixtureRequest) -> bool:
    if request.param:
        pytest.importorskip("peft")
    return bool(request.param)


@pytest.fixture(scope="module")
def guarded() -> set[int]:
    """Tokenizers that let in one thread at a time already."""
    return set()


@pytest.fixture(scope="module", params=KINDS)
def studio(request: pytest.FixtureRequest, lora: bool, guarded: set[int]) -> Iterator[Studio]:
    for name, part in zoo.pipeline(request.param).components.items():
        if name.startswith("tokenizer") and id(part) not in guarded:
            guarded.add(id(part))
            one_at_a_time(part)
    with adapter(request.param) if lora else nullcontext():
        yield Studio(request.param, lora)


@contextmanager
def adapter(kind: str) -> Iterator[None]:
    stock = zoo.pipeline(kind)
    stock.load_lora_weights(zoo.lora(stock))
    yield
    stock.unload_lora_weights()


def relative(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a run may need longer for its own part of a step than is worth waiting."""
    monkeypatch.setattr(turnstile, "_PATIENCE", (1.0, 0.5, 0.5))


def at_once(count: int, work: Callable[[int], None]) -> None:
    faults: list[BaseException] = []
    start = threading.Barrier(count, timeout=20)

    def guarded(index: int) -> None:
        try:
            start.wait()
            work(index)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


@contextmanager
def counted(denoiser: Any) -> Iterator[list[int]]:
    """The rows of each forward of the denoiser from now on."""
    rows: list[int] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named: Any = kwargs.get("sample", kwargs.get("hidden_states"))
        picture = args[0] if args else named
        rows.append(len(picture))

    handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    yield rows
    handle.remove()


def test_a_picture_alone_is_bit_for_bit_that_of_the_stock_pipeline(studio: Studio) -> None:
    one = Turnstile()
    for index, plain in enumerate(studio.plain):
        drawn, _ = studio.through_a_view(index, one, Sharing((0, 0.0), 8))
        assert torch.equal(drawn.picture, plain.picture), studio.wishes[index]
        assert torch.equal(drawn.latents, plain.latents), studio.wishes[index]


@pytest.mark.usefixtures("patient")
def test_pictures_that_share_steps_have_the_latents_of_the_stock_pipeline(studio: Studio) -> None:
    count = len(studio.wishes)
    with counted(studio.denoiser) as single:
        for index in range(count):
            studio.through_a_view(index, Turnstile())
    one = Turnstile()
    drawn: dict[int, Drawn] = {}

    def draw(index: int) -> None:
        drawn[index], _ = studio.through_a_view(index, one, Sharing((0, float(index)), 8))

    with counted(studio.denoiser) as shared:
        at_once(count, draw)
    apart = [relative(drawn[index].latents, studio.plain[index].latents) for index in range(count)]
    assert max(apart) <= 1e-5
    assert sum(shared) == sum(single)
    assert len(shared) < len(single)
    assert max(shared) > max(single)


def test_an_adapter_changes_the_picture(lora: bool) -> None:
    if not lora:
        pytest.skip("there is none")
    for kind in ("StableDiffusionPipeline", "FluxPipeline"):
        plain = Studio(kind, adapted=False).plain[0]
        with adapter(kind):
            adapted = Studio(kind, adapted=True).plain
        assert relative(adapted[0].latents, plain.latents) > 1e-2
        assert relative(adapted[-1].latents, adapted[0].latents) > 1e-3


def test_pipelines_that_look_at_a_prompt_twice_do_not_change_each_others() -> None:
    stock = zoo.pipeline("StableDiffusionPipeline")
    tokenizer = copy.deepcopy(stock.tokenizer)
    one_at_a_time(tokenizer)
    wrong: list[int] = []

    def padded(_: int) -> None:
        for _ in range(2000):
            ids = tokenizer("a red circle", padding="max_length", truncation=True).input_ids
            if len(ids) != tokenizer.model_max_length:
                wrong.append(len(ids))

    def looked_at(_: int) -> None:
        for _ in range(2000):
            stock.maybe_convert_prompt("a red circle", tokenizer)

    at_once(4, lambda index: (padded, looked_at)[index % 2](index))
    assert wrong == []


# -- the bundled models in the engine --------------------------------------------------------------


@pytest.fixture(scope="module", params=["sketch", "sketch-flux"])
def painter(request: pytest.FixtureRequest) -> Painter:
    return Painter(request.param, {"sketch": stable_diffusion, "sketch-flux": flux}[request.param])


def greys_apart(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("batch", [1, 8])
def test_eight_requests_at_once_draw_what_they_draw_alone(painter: Painter, batch: int) -> None:
    samplers = list(painter.card.samplers)
    wishes = [
        painter.wish(
            f"a {colour} circle",
            seed=index,
            num_inference_steps=3 + index % 3,
            guidance_scale=2.0 + index % 4,
            sampler=samplers[index % len(samplers)],
        )
        for index, colour in enumerate(["red", "blue", "green", "black"] * 2)
    ]
    alone = [pictures(painter.run(wish))[0] for wish in wishes]
    painter.engine._prompts.clear()
    together: dict[int, Pixels] = {}
    shared_by: list[int] = []

    def draw(index: int) -> None:
        events = painter.run(wishes[index], sharing=Sharing((0, float(index)), batch))
        (together[index],) = pictures(events)
        shared_by.extend(event.batch for event in events if isinstance(event, StepFinished))

    at_once(len(wishes), draw)
    apart = [greys_apart(together[index], one) for index, one in enumerate(alone)]
    assert max(apart) <= (0 if batch == 1 else 1)
    assert np.mean(shared_by) == 1 if batch == 1 else np.mean(shared_by) > 2


@pytest.mark.parametrize("batch", [1, 4])
def test_the_pictures_of_one_request_are_those_of_their_seeds_alone(
    painter: Painter, batch: int
) -> None:
    wish = painter.wish(n=4, seed=40, num_inference_steps=4)
    events = painter.run(wish, sharing=Sharing((0, 0.0), batch))
    shared_by = [event.batch for event in events if isinstance(event, StepFinished)]
    finished = [event for event in events if isinstance(event, ImageFinished)]
    assert sorted(event.seed for event in finished) == [40, 41, 42, 43]
    for event in finished:
        alone = painter.draw(seed=event.seed, num_inference_steps=4)
        assert greys_apart(pixels(event.image), alone) <= (0 if batch == 1 else 1)
    assert np.mean(shared_by) == 1 if batch == 1 else np.mean(shared_by) > 2
