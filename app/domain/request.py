"""What a client gave, and what becomes of it: a request that says everything."""

from __future__ import annotations

from typing import Literal

import msgspec

from app.domain import pipelines
from app.domain.lora import Lora, lora_id
from app.domain.pipelines import Family, Task

OutputFormat = Literal["png", "jpeg", "webp"]
Preset = Literal["strict", "exact", "balanced", "fast"]
"""How close to the stock pipeline's picture: bit for bit; up to rounding, where steps are shared; and
two that trade closeness for speed, once they were measured to be worth it."""

MEDIA_TYPES: dict[OutputFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}

SEED_LIMIT = 2**32
"""Drawn seeds are below this, so that every client language holds them exactly; given ones too."""


MAX_INPUT_PIXELS = 64 * 1024 * 1024
"""Above this an input picture is refused by its header, before a byte of it is decoded."""


AUTO = "auto"
"""As a model's name: whichever can draw it soonest."""

Priority = Literal["interactive", "background"]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks of the schedule; the picture is the same under any terms.

    `deadline` is seconds from submission: a job that is not finished by then expires. `timeout` is
    seconds of drawing, at most those that the server allows.
    """

    priority: Priority = "interactive"
    deadline: float | None = None
    timeout: float | None = None


class Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """What a front door understood of a body, in diffusers' names. None means: not given.

    `effort` multiplies the model's default steps where no number of steps is given. `image_size` is
    that of `image`, or else of `control_image`, upright, in pixels: what is drawn takes it when no
    size is given. `control` is a control network, for which `control_image` is made. `styles` are
    to be put around the prompt, `styled` are in it already. `requested_model` is what was asked for
    where `model` is another.
    """

    prompt: str
    model: str | None = None
    negative_prompt: str | None = None
    n: int | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    effort: float | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    sampler: str | None = None
    seed: int | None = None
    strength: float | None = None
    image: bytes | None = None
    image_size: tuple[int, int] | None = None
    mask_image: bytes | None = None
    control: str | None = None
    control_image: bytes | None = None
    controlnet_conditioning_scale: float | None = None
    control_guidance_start: float | None = None
    control_guidance_end: float | None = None
    output_format: str | None = None
    output_compression: int | None = None
    preset: str | None = None
    previews: int | None = None
    metadata: bool | None = None
    styles: tuple[str, ...] = ()
    styled: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    requested_model: str = ""
    upscale: int | None = None
    upscaler: str | None = None
    webhook: str | None = None
    terms: Terms = Terms()


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One resolved wish: nothing is optional by meaning, and equal requests draw equal images.

    `width` and `height` are pixels. Image i of `n` is drawn with seed `seed + i` on a CPU generator.
    `image` and `mask_image` hold encoded pictures (PNG, JPEG, WebP); a mask is white where the
    picture is to be painted anew. `output_compression` is the encoder quality, 0 to 100, for jpeg
    and webp. `pipeline` is the diffusers class that the model's folder names. `previews` is how many
    unfinished pictures are shown of each image, evenly spread. `metadata` is whether the pictures
    tell how they were drawn. `styled` names the styles whose words are in the prompts. `loras` act in
    their order.
    `requested_model` is the name that was asked for, where another model draws. Pictures become
    `upscale` times as large in the end, by `upscaler`; to "upscale" is to do only that, to `image`,
    and then `width` and `height` are those of the end. The network `control` sees `control_image` and
    has a say of `controlnet_conditioning_scale` in the steps between these shares of all of them.
    """

    model: str
    family: Family
    task: Task
    prompt: str
    negative_prompt: str
    n: int
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    sampler: str
    seed: int
    strength: float
    output_format: OutputFormat
    output_compression: int
    max_sequence_length: int
    pipeline: str = ""
    preset: Preset = "exact"
    technique: str = ""
    previews: int = 0
    metadata: bool = True
    styled: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    requested_model: str = ""
    upscale: int = 1
    upscaler: str = ""
    control: str = ""
    controlnet_conditioning_scale: float = 1.0
    control_guidance_start: float = 0.0
    control_guidance_end: float = 1.0
    image: bytes | None = None
    mask_image: bytes | None = None
    control_image: bytes | None = None

    def without_pictures(self) -> GenerationRequest:
        """The same, for history: input pictures can be large."""
        return msgspec.structs.replace(self, image=None, mask_image=None, control_image=None)

    def with_pictures_of(self, other: GenerationRequest) -> GenerationRequest:
        return msgspec.structs.replace(
            self,
            image=other.image,
            mask_image=other.mask_image,
            control_image=other.control_image,
        )

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self.output_format]

    @property
    def steps_per_image(self) -> int:
        """Denoising steps that really run: of one drawn anew, the last `strength` of them."""
        kind = self.pipeline or pipelines.first_of(
            self.family
        )  # histories are older than the field
        return pipelines.steps_kept(kind, self.task, self.num_inference_steps, self.strength)

    @property
    def total_steps(self) -> int:
        return self.steps_per_image * self.n

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """The steps of an image (from 1) after which it is shown: thirds of the way for two."""
        steps, parts = self.steps_per_image, self.previews + 1
        at = {steps * part // parts for part in range(1, parts)}
        return tuple(sorted(at - {0, steps}))

    @property
    def lora_ids(self) -> tuple[str, ...]:
        """What the shelf of all models knows its LoRAs by."""
        return tuple(lora_id(one.name) for one in self.loras)

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def picture_sides(self) -> tuple[int, int]:
        """Width and height of the pictures in the end."""
        times = 1 if self.task == "upscale" else self.upscale
        return self.width * times, self.height * times

    @property
    def asked(self) -> str:
        """The model that was asked for, whether or not it draws."""
        return self.requested_model or self.model

    @property
    def style(self) -> str:
        """The styles as one text, for people."""
        return " + ".join(self.styled)


def replay(request: GenerationRequest) -> Arguments:
    """What to ask for to draw exactly this again, its seed included. The terms are the usual ones,
    and a preset's technique is whatever is the preset's then."""
    both = set(Arguments.__struct_fields__) & set(GenerationRequest.__struct_fields__)
    return Arguments(**{name: getattr(request, name) for name in both})
