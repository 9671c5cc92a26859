"""Draws with stock diffusers pipelines: load, run, encode, for every family."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch

from app.domain.errors import Cancelled, InvalidRequest, OutOfMemory
from app.domain.events import ImageFinished, PhaseStarted, Waited
from app.domain.lora import KEPT_BYTES
from app.domain.memory_plan import NO_LIMIT, STAYS, Plan, Room
from app.domain.model_card import ModelCard
from app.domain.picture_facts import Origin, about
from app.domain.pipelines import Task
from app.domain.request import GenerationRequest
from app.engines import control, forward_profile, image_codec, samplers
from app.engines.adapters import PLAIN, Adapted, Adapters
from app.engines.base import ALONE, Generate, Report, Sharing
from app.engines.control import STEERINGS, Network, Networks
from app.engines.fitting import plan_for, quantised_parts
from app.engines.forward_batcher import ForwardBatcher
from app.engines.forward_profile import FirstCall
from app.engines.host_copy import Carrier, carrier_of, memory_of
from app.engines.image_codec import Pixels
from app.engines.model_hash import ModelHash, commit_of
from app.engines.pipeline_view import DENOISERS, one_at_a_time, view_of, words_of
from app.engines.preview import LatentColours, PredictedEnd
from app.engines.prompt_cache import PromptCache
from app.engines.recipe import Recipe
from app.engines.run_gate import RunGate
from app.engines.side_by_side import side_by_side
from app.engines.step_gate import ImageGate
from app.engines.techniques import Denoiser, Techniques
from app.engines.turns import PartsInTurn, layers_in_turn
from app.engines.turnstile import Turnstile
from app.engines.weights import dtype_for, load_network, load_pipeline, sibling

_log = logging.getLogger(__name__)

_LIBRARIES = (f"diffusers {diffusers.__version__}", f"torch {torch.__version__}")

_HASH_PATIENCE = 0.2
"""Seconds that a load waits for its model's hash: small models tell it from the first picture on."""


class DiffusersEngine:
    """One loaded pipeline. Requests run in the callers' threads, each picture on its own view.

    `recipes` are those of a family, by the class that a folder's index names. LoRAs are kept within
    `lora_room` bytes; `building` is held by whoever makes modules, in this engine or another.
    """

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        turnstile: Turnstile | None = None,
        room: Room = NO_LIMIT,
        *,
        lora_room: int = KEPT_BYTES,
        building: threading.Lock | None = None,
    ) -> None:
        self._recipes = recipes
        self._room = room
        self._plan: Plan | None = None
        self._turns: PartsInTurn | None = None
        self._turnstile = turnstile or Turnstile()
        self._lora_room = lora_room
        self._building = building or threading.Lock()
        self._adapters: Adapters | None = None
        self._loaded: Any = None
        self._pipelines: dict[Task, Any] = {}
        self._denoisers: dict[str, Techniques] = {}
        self._prompts = PromptCache()
        self._networks = Networks()
        self._device = "cpu"
        self._carrier: Carrier | None = None

    @property
    def memory(self) -> int:
        adapters = self._adapters.memory if self._adapters is not None else 0
        weights = self._plan.vram if self._plan and self._in_turn else memory_of(self._modules())
        return weights + self._networks.memory + adapters

    @property
    def _in_turn(self) -> bool:
        """Whether the weights come to the device when they are needed."""
        return self._plan is not None and self._plan.residency != "resident"

    def _modules(self) -> list[torch.nn.Module]:
        """All that holds weights. The pipelines of all tasks hold the same."""
        parts = self._loaded.components.values() if self._loaded is not None else ()
        return [part for part in parts if isinstance(part, torch.nn.Module)]

    def load(self, card: ModelCard, device: str) -> None:
        self._device = device
        self._card = card
        self._hash = ModelHash(Path(card.source))
        self._recipe = self._recipes[card.pipeline_name]
        classes = self._recipe.classes
        self._plan = plan_for(card, device, self._room)
        self._loaded = loaded = load_pipeline(
            card,
            next(iter(classes.values())),
            device,
            in_turn=self._in_turn,
            quantised=quantised_parts(card, self._plan),
        )
        samplers.check(card)
        for name, part in loaded.components.items():
            if name.startswith(("tokenizer", "processor")) and part is not None:
                one_at_a_time(words_of(part))
        self._denoisers = {
            name: Techniques(part)
            for name in DENOISERS
            if (part := getattr(loaded, name, None)) is not None
        }
        self._colours = LatentColours(loaded.vae)
        for task in card.tasks:
            kind = classes[task]
            is_loaded = type(loaded) is kind
            self._pipelines[task] = loaded if is_loaded else sibling(loaded, kind)
        if self._plan is not None and self._in_turn:
            self._offload(self._plan)
        self._adapters = Adapters(
            loaded, card, device, room=self._lora_room, building=self._building
        )
        self._hash.known(wait=_HASH_PATIENCE)

    def _offload(self, plan: Plan) -> None:
        named = self._loaded.components.items()
        parts = {name: one for name, one in named if isinstance(one, torch.nn.Module)}
        if STAYS in parts:
            parts.pop(STAYS).to(self._device)
        if plan.residency == "model_offload":
            room = self._room.vram - plan.working
            self._turns = PartsInTurn(parts, self._device, room)
        else:
            layers_in_turn(parts, self._device)

    def listens_to(self, control: ModelCard) -> bool:
        return self._networks.get(control) is not None

    def under(self, control: ModelCard) -> Generate:
        network = self._networks.get(control) or self._network(control)
        return partial(self._generate, network)

    def _network(self, card: ModelCard) -> Network:
        steering = STEERINGS[self._card.pipeline_name]
        dtype = dtype_for(self._card, self._device)
        part = load_network(card, steering.network, dtype, self._device)
        denoiser = next(getattr(self._loaded, name) for name in self._denoisers)
        control.check(card, part, denoiser, steering.shared)
        network = Network(part, self._loaded, steering, self._card.tasks)
        self._networks.add(card, network)
        return network

    def generate(
        self, request: GenerationRequest, report: Report, sharing: Sharing = ALONE
    ) -> None:
        self._generate(None, request, report, sharing)

    def _generate(
        self, network: Network | None, request: GenerationRequest, report: Report, sharing: Sharing
    ) -> None:
        report(PhaseStarted("preparing"))
        adapted = self._adapted(request, report, sharing)
        run = self._prepared(request, report, sharing, network=network, adapted=adapted)
        # Each picture by itself, with the seed that it would have alone; at the same time where
        # their steps may be shared, and else one after the other.
        at_once = 1 if request.preset == "strict" else sharing.batch
        side_by_side(partial(self._draw, run), request.n, at_once)

    def _adapted(self, request: GenerationRequest, report: Report, sharing: Sharing) -> Adapted:
        """The LoRAs of the request, in place. Raises InvalidRequest, OutOfMemory, and what `report`
        raises."""
        if self._adapters is None or not any(one.scale for one in request.loras):
            return PLAIN
        if self._in_turn and self._turns is None:
            raise InvalidRequest(
                f"Model {self._card.id} takes no LoRAs while its layers take turns on the device.",
                param="loras",
            )
        if self._plan is not None and self._plan.quantised:
            raise InvalidRequest(
                f"Model {self._card.id} takes no LoRAs while its weights are held in eight bits.",
                param="loras",
            )
        check = partial(report, Waited())
        with self._turnstile.rider(sharing, check) as rider:
            rider.overlap = False  # nothing may be computing with what is copied
            return self._adapters.take(request.loras, check, rider.do)

    def _prepared(
        self,
        request: GenerationRequest,
        report: Report,
        sharing: Sharing,
        catching: Mapping[str, FirstCall] | None = None,
        network: Network | None = None,
        adapted: Adapted = PLAIN,
    ) -> _Run:
        steered = (network.pipelines if network else self._pipelines)[request.task]
        pipeline = adapted.pipeline(steered)
        arguments = self._recipe.arguments(request)
        tokens = self._tokens(request.prompt)
        size = (request.width, request.height)
        if request.image is not None:
            arguments["image"] = image_codec.decode_rgb(request.image, "image", size)
        if request.mask_image is not None:
            arguments["mask_image"] = image_codec.decode_mask(request.mask_image, size)
        if network is not None:
            arguments |= control.arguments(pipeline, request)
        gate = RunGate(report, request)
        return _Run(request, report, sharing, pipeline, arguments, tokens, gate, catching, adapted)

    def _tokens(self, prompt: str) -> int:
        """How long a prompt is. Folders may leave out what counts: the one for T5, or all."""
        counting = getattr(self._loaded, self._recipe.tokenizer, None) or self._loaded.tokenizer
        if counting is None:
            return len(prompt.split())
        return len(words_of(counting)(prompt).input_ids)

    @torch.inference_mode()
    def _draw(self, run: _Run, index: int) -> None:
        """Draw one picture of a request and report it; once more with less memory if it has to be."""
        pixels = self._unless_full(run, index, run.sharing)
        if pixels is None:
            _log.warning("out of memory: the picture is drawn once more, alone and in tiles")
            pixels = self._unless_full(run, index, Sharing(run.sharing.rank), tiled=True)
        if pixels is None:
            raise OutOfMemory("The device has no room for this request.")
        request = run.request
        seed = request.seed + index
        image = image_codec.encode(pixels, request, about(request, seed, self._origin(run)))
        small = image_codec.thumbnail(pixels)
        run.report(ImageFinished(index, image, seed, request.media_type, run.tokens, small))

    def _origin(self, run: _Run) -> Origin:
        revision = self._card.revision or commit_of(self._card.source)
        return Origin(revision, self._hash.known(), _LIBRARIES, run.adapted.hashes)

    def _unless_full(
        self, run: _Run, index: int, sharing: Sharing, *, tiled: bool = False
    ) -> Pixels | None:
        """The picture; None, and all memory given back, if the device has no room for it."""
        try:
            return self._pixels(run, index, sharing, tiled=tiled)
        except torch.OutOfMemoryError:
            pass  # its traceback holds on to what filled the device: no retry in here
        _let_go()
        return None

    def _pixels(self, run: _Run, index: int, sharing: Sharing, *, tiled: bool = False) -> Pixels:
        request, pipeline = run.request, run.pipeline
        seed = request.seed + index
        scheduler = samplers.build(self._card, request.sampler, pipeline.scheduler.config)
        with ExitStack() as stack:
            rider = stack.enter_context(
                self._turnstile.rider(sharing, partial(run.report, Waited()))
            )
            rider.overlap = rider.overlap and not self._in_turn  # one thread moves the parts
            denoisers: Mapping[str, Denoiser] = run.catching or {
                name: stack.enter_context(
                    one.denoiser(request.technique, strict=request.preset == "strict")
                )
                for name, one in run.adapted.denoisers(self._denoisers).items()
            }
            gate = ImageGate(run.gate, request, index, rider)
            view = view_of(
                pipeline,
                scheduler,
                gate,
                rider,
                denoisers,
                self._prompts,
                layers=self._recipe.layers,
                adapters=run.adapted.key,
                tiled=tiled or (self._plan is not None and self._plan.tiled),
                device=self._device if self._in_turn else "",
                seed=seed,
            )
            if request.previews:
                end = PredictedEnd(scheduler)
                gate.preview = partial(self._preview, view, end, request)
            drawn = view(
                **run.arguments,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="pt",
                **gate.callbacks(has_step_end=self._recipe.has_step_end),
            ).images[0]
        # The same rounding as diffusers' `numpy_to_pil`, done where the tensor lies.
        levels = (drawn.float() * 255).round().to(torch.uint8)
        pixels: Pixels = levels.permute(1, 2, 0).contiguous().cpu().numpy()
        return pixels

    def _preview(self, view: Any, end: PredictedEnd, request: GenerationRequest) -> bytes:
        latents = self._recipe.decodable(view, end.latents(), request)[0]
        pixels = self._colours.paint(latents, request.width, request.height)
        return image_codec.encode(pixels, request)

    def profile(self, request: GenerationRequest) -> Mapping[int, float]:
        with ExitStack() as stack:
            shared = {
                name: stack.enter_context(one.denoiser(request.technique))
                for name, one in self._denoisers.items()
            }
            for name, one in shared.items():
                if not isinstance(one, ForwardBatcher):
                    continue
                first = FirstCall(one.denoiser)
                with suppress(Cancelled):
                    run = self._prepared(request, lambda event: None, ALONE, {name: first})
                    self._draw(run, 0)
                if first.caught is not None:
                    return forward_profile.profile(one, first.caught, self._turnstile)
        return {}

    def park(self) -> None:
        """Keep the weights in host memory, off the device, until `unpark`. Nobody may be drawing."""
        self._prompts.clear()
        self._networks.clear()  # quick to load again, and seldom needed by who comes next
        if self._adapters is not None:
            self._adapters.clear()
        if self._turns is not None:
            self._turns.send_away()
        elif not self._in_turn:
            if self._carrier is None:
                self._carrier = carrier_of(self._modules(), self._device)
            self._carrier.to_host()
        _let_go()

    def unpark(self) -> None:
        """Bring the weights back. Raises OutOfMemory; they are in host memory then."""
        if self._carrier is None:
            return
        try:
            self._carrier.to_device()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("The device has no room for the model's weights.") from error

    def unload(self) -> None:
        if self._turns is not None:
            self._turns.close()
        self._carrier = self._loaded = self._turns = self._adapters = None
        self._pipelines.clear()
        self._denoisers.clear()
        self._networks.clear()
        self._prompts.clear()
        _let_go()


@dataclass(frozen=True)
class _Run:
    """What the pictures of one request have in common."""

    request: GenerationRequest
    report: Report
    sharing: Sharing
    pipeline: Any
    arguments: dict[str, Any]
    tokens: int
    gate: RunGate
    catching: Mapping[str, FirstCall] | None
    adapted: Adapted


def _let_go() -> None:
    """Give back what is no longer used, to the device too."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
