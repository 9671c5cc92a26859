"""The shapes of JSON answers, for the OpenAPI document and for tests that hold real answers against it.

Handlers build their bodies by hand, close to what they answer with; nothing here is ever made.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from app.api._lora_shapes import LoraNamed


class ErrorBody(msgspec.Struct):
    """`type` is OpenAI's, `code` is stable, `param` names the field at fault."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "rate_limit_error",
        "server_error",
    ]
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct):
    """The body of every error of every route."""

    error: ErrorBody


class InputTokens(msgspec.Struct):
    image_tokens: int
    text_tokens: int


class Usage(msgspec.Struct):
    """Prompts in tokens of the text encoder, pictures in patches of 16 x 16 pixels."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens
    gpu_seconds: float | None = None


class Picture(msgspec.Struct):
    """Either `b64_json` or `url`, as `response_format` says; `revised_prompt` for a style."""

    seed: int
    revised_prompt: str | None = None
    b64_json: str | None = None
    url: str | None = None


Format = Literal["png", "jpeg", "webp"]


class Pictures(msgspec.Struct):
    """The figures are those of the technique, where the preset has one."""

    created: int
    data: list[Picture]
    size: str
    output_format: Format
    background: Literal["opaque"]
    quality: Literal["low", "medium", "high"]
    usage: Usage
    model: str
    requested_model: str
    job_id: str
    preset: Literal["strict", "exact", "balanced", "fast"]
    technique: str
    speedup: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    max_difference: int | None = None
    pictures: int | None = None


class ModelShown(msgspec.Struct):
    """OpenAI's four keys, and what the model can do."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    title: str
    family: str
    pipeline: str
    licence: str
    aliases: list[str]
    tasks: list[Literal["text2image", "image2image", "inpaint"]]
    samplers: list[str]
    negative_prompt: bool
    ignores: list[Literal["guidance_scale", "negative_prompt"]]
    parameters: dict[str, int]
    output_formats: list[Format]
    transparent_background: bool
    defaults: dict[str, Any]
    limits: dict[str, float]
    preset: Literal["strict", "exact", "balanced", "fast"]
    presets: dict[str, dict[str, Any]]


class ModelList(msgspec.Struct):
    object: Literal["list"]
    data: list[ModelShown]


class UpscalerShown(msgspec.Struct):
    id: str
    scales: list[int]


class UpscalerList(msgspec.Struct):
    upscalers: list[UpscalerShown]


FilesState = Literal["bundled", "on_disk", "not_downloaded", "downloading", "unavailable"]


class FileShown(msgspec.Struct):
    name: str
    bytes_done: int
    bytes_total: int


class ModelFilesShown(msgspec.Struct):
    """Bytes are 0 where they are not known; seconds are null then. `retry_in` is the seconds until a
    job may try again what failed for this `reason`."""

    id: str
    state: FilesState
    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    seconds_left: float | None
    files: list[FileShown]
    reason: str
    retry_in: float | None


class ModelWithFiles(ModelShown):
    """A model, and how its files stand."""

    state: FilesState
    bytes_done: int
    bytes_total: int
    reason: str


class AllModels(msgspec.Struct):
    object: Literal["list"]
    data: list[ModelWithFiles]


class Removed(msgspec.Struct):
    """How many bytes of the disk are free now."""

    freed: int


class JobError(msgspec.Struct):
    code: str
    message: str | None


class JobShown(msgspec.Struct):
    """A job of any door. `images` are ids that `/images/{image_id}` serves.

    A new job has no tags yet, and pictures neither marked nor without a place.
    """

    id: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
    door: str
    owner: str
    created: float
    model: str
    requested_model: str
    prompt: str
    negative_prompt: str
    size: str
    n: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    style: str
    loras: list[LoraNamed]
    seed: int
    progress: float
    fraction: float
    eta_seconds: float
    message: str
    step: int | None
    total_steps: int | None
    attempt: int
    queue_position: int
    images: list[str]
    priority: Literal["interactive", "background"]
    deadline: float | None
    error: JobError | None
    tags: list[str] = []
    favourites: list[str] = []
    not_stored: list[str] = []


class JobList(msgspec.Struct):
    """`cursor` asks for the next page; it is null at the end."""

    jobs: list[JobShown]
    cursor: str | None


class Forgotten(msgspec.Struct):
    """How many jobs were removed."""

    forgotten: int


class Estimate(msgspec.Struct):
    """Half of such jobs are done after `eta_seconds`, nine of ten after `eta_seconds_p90`.

    `memory_bytes` is what the model's weights take; 0 where that is not known. `memory_plan` says how a
    GPU would hold them; null where they just stay on the device.
    """

    model: str
    size: str
    n: int
    num_inference_steps: int
    eta_seconds: float
    eta_seconds_p90: float
    queue_position: int
    model_held: bool
    memory_bytes: int
    memory_plan: str | None


class DiffuGenPicture(msgspec.Struct):
    b64_json: str
    seed: int
    id: str
    url: str
    format: Format


class DiffuGenParameters(msgspec.Struct):
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    cfg_scale: float
    sampling_method: str
    seed: int


class DiffuGenAnswer(msgspec.Struct):
    success: bool
    job_id: str
    images: list[DiffuGenPicture]
    model: str
    requested_model: str
    parameters: DiffuGenParameters


class WebUiOptions(msgspec.Struct):
    sd_model_checkpoint: str
    sd_checkpoint_hash: str


class WebUiModel(msgspec.Struct):
    title: str
    model_name: str
    filename: str
    hash: str | None
    sha256: str | None
    config: str | None


class WebUiSampler(msgspec.Struct):
    name: str
    aliases: list[str]
    options: dict[str, str]


class WebUiScheduler(msgspec.Struct):
    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class WebUiStyle(msgspec.Struct):
    name: str
    prompt: str
    negative_prompt: str


class WebUiPictures(msgspec.Struct):
    """`images` are PNG in base64, `info` is JSON in text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class WebUiState(msgspec.Struct):
    skipped: bool
    interrupted: bool
    job: str
    job_count: int
    job_timestamp: str
    job_no: int
    sampling_step: int
    sampling_steps: int


class WebUiProgress(msgspec.Struct):
    progress: float
    eta_relative: float
    state: WebUiState
    current_image: str | None
    textinfo: str | None


class VisionBanner(msgspec.Struct):
    service: Literal["vision_service"]
    version: str
    status: Literal["running"]


class VisionPicture(msgspec.Struct):
    """`generation_time` is seconds from the start of drawing to its end, the queue not counted."""

    image_bytes_b64: str
    format: Format
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    model: str
    requested_model: str
    generation_time: float
    job_id: str


class VisionModel(msgspec.Struct):
    cuda_available: bool
    device: str
    current_model: str
    model_loaded: bool
    available_models: list[str]


class VisionLoaded(msgspec.Struct):
    status: Literal["success"]
    message: str
    model: str


class Nothing(msgspec.Struct):
    """An empty object."""


class Alive(msgspec.Struct):
    status: Literal["ok"]


class WorkerShown(msgspec.Struct):
    id: str
    device: str
    state: str
    models: list[str]


class Readiness(msgspec.Struct):
    ready: bool
    workers: list[WorkerShown]
    waiting: int
