"""A model card says what a model is, what it is good at, and what it may be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from app.domain import lora, pipelines, samplers
from app.domain.errors import InvalidRequest
from app.domain.model_source import HubSource, hub_source, is_single_file
from app.domain.pipelines import Family, Pipeline, Task
from app.domain.request import (
    MEDIA_TYPES,
    SEED_LIMIT,
    Arguments,
    GenerationRequest,
    Preset,
)

_WHITE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63f8"
    "0f0001010100b138f6140000000049454e44ae426082"
)
"""One white pixel as PNG: a picture to draw anew, or a mask of all of it."""

T = TypeVar("T")
N = TypeVar("N", int, float)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Defaults(_Part):
    """What a request gets that does not say otherwise. Sizes in pixels."""

    width: PositiveInt = 512
    height: PositiveInt = 512
    num_inference_steps: PositiveInt = 20
    guidance_scale: float = Field(default=7.5, ge=0)
    true_cfg_scale: float = Field(default=1.0, ge=1)
    sampler: str
    strength: float = Field(default=0.75, gt=0, le=1)
    inpaint_strength: float = Field(default=1.0, gt=0, le=1)
    negative_prompt: str = ""
    max_sequence_length: PositiveInt = 77

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


class Limits(_Part):
    """What a request must stay within. `max_cost` caps n x width x height x steps."""

    min_side: PositiveInt = 64
    max_side: PositiveInt = 2048
    multiple: PositiveInt = 8
    max_steps: PositiveInt = 150
    max_n: PositiveInt = 10
    max_prompt_chars: PositiveInt = 4000
    max_guidance_scale: float = 50.0
    max_cost: PositiveInt = 10 * 2048 * 2048 * 50


class FakeTimes(_Part):
    """How slow the fake engine pretends to be, in seconds, and whether it draws noise: a picture of
    one colour is too easy for encoders and sockets to be measured with. A step of `batch` pictures
    takes no longer than that of one. Only with `thumbnails` it makes them, as the real engines do."""

    load_seconds: float = Field(default=0.0, ge=0)
    step_seconds: float = Field(default=0.0, ge=0)
    noise: bool = False
    batch: PositiveInt = 1
    thumbnails: bool = False


class ModelCard(_Part):
    """One model: its id, the family whose code draws it, where its weights lie, and its habits.

    `source` is what `model_source` tells; a path may be relative to the card's file. `revision` is
    the version that is fetched, or that lies there, for pictures to tell. A single file (`source`
    itself, or a `file` of the Hub) needs a `base`, the source of all that is not in it. `pipeline` is
    the class that the folder's index names (by default the family's first), and `scheduler` overrides
    values of the folder's noise schedule. `ignores` names what a client may give and the model was
    trained to do without. `parameters` counts the weights of each part. `dtype` is what they are
    computed in (`auto` takes float32 on a CPU). With `quantization` "int8" the large transformers are
    held in eight bits a weight, with "none" never, and with "auto" where nothing else fits. The models
    in `fallback` draw when this one cannot be loaded.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")
    aliases: tuple[str, ...] = ()
    family: Family
    source: str
    revision: str = Field(default="", pattern=r"^[A-Za-z0-9._+-]{0,64}$")
    file: str = ""
    base: str = ""
    base_revision: str = Field(default="", pattern=r"^[A-Za-z0-9._+-]{0,64}$")
    title: str = ""
    licence: str = ""
    pipeline: str = ""
    tasks: tuple[Task, ...] = ("text2image",)
    ignores: tuple[Literal["guidance_scale", "negative_prompt"], ...] = ()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["auto", "int8", "none"] = "auto"
    preset: Preset = "exact"
    fallback: tuple[str, ...] = ()
    defaults: Defaults
    limits: Limits = Limits()
    scheduler: dict[str, bool | int | float | str] = Field(default_factory=dict)
    parameters: dict[str, PositiveInt] = Field(default_factory=dict)
    fake: FakeTimes = FakeTimes()

    @model_validator(mode="after")
    def _of_a_known_kind(self) -> Self:
        known = [name for name, one in pipelines.PIPELINES.items() if one.family == self.family]
        if self.pipeline and self.pipeline not in known:
            raise ValueError(f"pipeline of family {self.family} must be one of {', '.join(known)}")
        if beyond := [task for task in self.tasks if task not in self.kind.tasks]:
            raise ValueError(f"{self.pipeline_name} cannot do {', '.join(beyond)}")
        if self.defaults.sampler not in self.kind.samplers:
            raise ValueError(f"defaults.sampler must be one of {', '.join(self.samplers)}")
        return self

    @property
    def pipeline_name(self) -> str:
        return self.pipeline or pipelines.first_of(self.family)

    @property
    def kind(self) -> Pipeline:
        """What may be asked of the card's pipeline."""
        return pipelines.PIPELINES[self.pipeline_name]

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        single = is_single_file(self.file or self.source)
        if single and not self.base and self.family != "lora":
            raise ValueError("a single file needs a base: where its configuration comes from")
        if self.base and not single:
            raise ValueError("base is for single files; source names a whole folder")
        _ = self.hub, self.hub_base
        return self

    @property
    def hub(self) -> HubSource | None:
        """What is to be fetched for `source`; None where it is a path."""
        return hub_source(self.source, self.revision, self.file)

    @property
    def hub_base(self) -> HubSource | None:
        """The same for `base`."""
        return hub_source(self.base, self.base_revision)

    @property
    def has_files(self) -> bool:
        """Whether there is anything to fetch or to look for; upscalers are found with their files."""
        return self.family not in {"fake", "upscaler"}

    @property
    def samplers(self) -> tuple[str, ...]:
        return tuple(self.kind.samplers)

    @property
    def negative_prompt(self) -> bool:
        """Whether the model has one at all."""
        return bool(self.kind.negative) and "negative_prompt" not in self.ignores

    def usual(self, prompt: str, **given: Any) -> Arguments:
        """What a usual job asks, to try the model: from words alone, or of a picture if it must."""
        if "text2image" in self.tasks:
            return Arguments(prompt=prompt, **given)
        mask = _WHITE if "inpaint" in self.tasks else None
        return Arguments(prompt=prompt, image=_WHITE, mask_image=mask, **given)

    def unused(self, given: Arguments, request: GenerationRequest) -> list[str]:
        """Names of fields that were given and did nothing for `request`, which was made of them."""
        kind = self.kind
        idle = {
            "negative_prompt": not self.negative_prompt
            or not getattr(request, kind.negative) > kind.threshold,
            "guidance_scale": not kind.guided or "guidance_scale" in self.ignores,
            "true_cfg_scale": kind.negative != "true_cfg_scale"
            or given.true_cfg_scale != request.true_cfg_scale,
            "strength": kind.tasks[request.task] == "all",
        }
        return [
            name
            for name, is_idle in idle.items()
            if is_idle and getattr(given, name) not in {None, ""}
        ]

    def resolve(
        self, given: Arguments, *, draw_seed: Callable[[], int], metadata: bool = True
    ) -> GenerationRequest:
        """Fill what was not given, check everything, and fix the seed. `metadata` is the server's
        own wish.

        Raises:
            InvalidRequest: a value is outside of what this model can do; `param` names the field.
        """
        default, limit = self.defaults, self.limits
        task = self._task(given)
        usual_size = self.fitted(given.image_size) if given.image_size else default.size
        usual_strength = default.inpaint_strength if task == "inpaint" else default.strength
        sampler = samplers.normalise(given.sampler) if given.sampler else default.sampler
        if sampler not in self.samplers:
            known = ", ".join(self.samplers)
            raise InvalidRequest(
                f"This sampler is not known to model {self.id}. Known: {known}.", param="sampler"
            )
        if task != "text2image" and not self.kind.samplers[sampler].edits:
            raise InvalidRequest(
                f"Sampler {sampler} cannot start from a picture; use another.", param="sampler"
            )
        negative = self._text(
            "negative_prompt", _or(given.negative_prompt, default.negative_prompt)
        )
        request = GenerationRequest(
            model=self.id,
            family=self.family,
            pipeline=self.pipeline_name,
            task=task,
            prompt=self._text("prompt", given.prompt, required=task != "image2image"),
            negative_prompt=negative if self.negative_prompt else "",
            n=within("n", _or(given.n, 1), 1, limit.max_n),
            width=self._side("width", _or(given.width, usual_size[0])),
            height=self._side("height", _or(given.height, usual_size[1])),
            num_inference_steps=within(
                "num_inference_steps",
                _or(given.num_inference_steps, self._usual_steps(given.effort)),
                1,
                limit.max_steps,
            ),
            guidance_scale=within(
                "guidance_scale",
                _or(given.guidance_scale, default.guidance_scale),
                0.0,
                limit.max_guidance_scale,
            ),
            true_cfg_scale=within(
                "true_cfg_scale",
                _or(given.true_cfg_scale, default.true_cfg_scale),
                1.0,
                limit.max_guidance_scale,
            ),
            sampler=sampler,
            seed=_seed(given.seed, draw_seed),
            strength=within("strength", _or(given.strength, usual_strength), 0.0, 1.0),
            output_format=output_format_of(given.output_format),
            output_compression=within(
                "output_compression", _or(given.output_compression, 100), 0, 100
            ),
            max_sequence_length=default.max_sequence_length,
            preset=_preset(_or(given.preset, self.preset)),
            previews=within("previews", _or(given.previews, 0), 0, 10),
            metadata=_or(given.metadata, metadata),
            styled=given.styled,
            loras=self._loras(given.loras),
            requested_model=given.requested_model,
            image=given.image,
            mask_image=given.mask_image,
        )
        if request.steps_per_image < 1:
            raise InvalidRequest(
                "strength x num_inference_steps must reach at least one step.", param="strength"
            )
        cost = request.n * request.width * request.height * request.num_inference_steps
        if cost > limit.max_cost:
            raise InvalidRequest(
                f"n x width x height x steps is {cost}; model {self.id} allows {limit.max_cost}. "
                "Ask for fewer images, fewer steps or a smaller size.",
                param="n",
            )
        return request

    def _task(self, given: Arguments) -> Task:
        if given.mask_image is not None and given.image is None:
            raise InvalidRequest("A mask needs an image to act on.", param="image")
        task: Task = "text2image" if given.image is None else "image2image"
        if given.mask_image is not None:
            task = "inpaint"
        if task not in self.tasks:
            raise InvalidRequest(
                f"Model {self.id} cannot do {task}; it can do {', '.join(self.tasks)}.",
                param="model",
            )
        return task

    def _loras(self, given: tuple[lora.Lora, ...]) -> tuple[lora.Lora, ...]:
        if given and not self.kind.loras:
            raise InvalidRequest(f"Model {self.id} takes no LoRAs.", param="loras")
        return lora.checked(given)

    def _text(self, param: str, text: str, *, required: bool = False) -> str:
        if required and not text.strip():
            raise InvalidRequest("A prompt must hold at least one visible character.", param=param)
        if len(text) > self.limits.max_prompt_chars:
            raise InvalidRequest(
                f"{param} has {len(text)} characters; at most {self.limits.max_prompt_chars} "
                "are allowed.",
                param=param,
            )
        if "\x00" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InvalidRequest(f"{param} holds characters that are not text.", param=param)
        return text

    def _usual_steps(self, effort: float | None) -> int:
        steps = round(self.defaults.num_inference_steps * _or(effort, 1.0))
        return min(max(1, steps), self.limits.max_steps)

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """A size, such as an input picture's, shrunk or enlarged in proportion to what can be drawn.

        A picture too narrow for both limits keeps its longer side and loses its proportion.
        """
        low, high = self.limits.min_side, self.limits.max_side
        scale = min(1.0, high / max(size))
        scale = max(scale, min(low / min(size), high / max(size)))
        width, height = (min(high, max(low, round(side * scale))) for side in size)
        return width, height

    def _side(self, param: str, pixels: int) -> int:
        """The nearest multiple that the model draws; what is then out of its reach is refused."""
        limit = self.limits
        within(param, pixels, 0, 100 * limit.max_side)
        nearest = max(limit.multiple, round(pixels / limit.multiple) * limit.multiple)
        return within(param, nearest, limit.min_side, limit.max_side)


def _or(given: T | None, default: T) -> T:
    return default if given is None else given


def within(param: str, value: N, low: N, high: N) -> N:
    if not low <= value <= high:  # NaN is not within anything
        raise InvalidRequest(f"{param} must be between {low} and {high}.", param=param)
    return value


def _seed(given: int | None, draw: Callable[[], int]) -> int:
    if given is None or given == -1:
        return draw()
    return within("seed", given, 0, SEED_LIMIT - 1)


def _preset(given: str) -> Preset:
    known: tuple[Preset, ...] = get_args(Preset)
    for preset in known:
        if given == preset:
            return preset
    raise InvalidRequest(f"preset must be one of {', '.join(known)}.", param="preset")


def output_format_of(given: str | None) -> Literal["png", "jpeg", "webp"]:
    name = "png" if given is None else given.lower()
    name = "jpeg" if name == "jpg" else name
    for known in MEDIA_TYPES:
        if name == known:
            return known
    raise InvalidRequest("output_format must be png, jpeg or webp.", param="output_format")
