"""Control networks beside a loaded model: which classes they are of, and who listens to them.

A network is loaded once for each model that it steers. The pipelines that listen to it are the
model's own parts under diffusers' classes for that, and are drawn with as all others are: on views,
each picture with its own picture to look at. What the network says is tensors of the denoiser's
call, so pictures under control share steps with each other and never with those that have none.
"""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
)

from app.domain.control import PARAM
from app.domain.errors import InvalidRequest, ModelUnavailable
from app.domain.model_card import ModelCard
from app.domain.pipelines import Task
from app.domain.request import GenerationRequest
from app.engines import image_codec

_KEPT = 3
"""Networks of one model that stay loaded: the one used least recently goes for a fourth."""


@dataclass(frozen=True)
class Steering:
    """Which class networks are of, and which pipelines listen to them.

    `shared` are names of the network's configuration that must be as the denoiser's, or it was made for
    another model; None, or a name that one of them lacks, fits all.
    """

    network: type[Any]
    classes: Mapping[Task, type[DiffusionPipeline]]
    shared: tuple[str, ...]


_OF_UNETS = ("cross_attention_dim", "block_out_channels", "addition_embed_type")
_OF_TRANSFORMERS = ("num_attention_heads", "attention_head_dim", "pooled_projection_dim")

_SD = Steering(
    ControlNetModel,
    {
        "text2image": StableDiffusionControlNetPipeline,
        "image2image": StableDiffusionControlNetImg2ImgPipeline,
        "inpaint": StableDiffusionControlNetInpaintPipeline,
    },
    _OF_UNETS,
)
_XL = Steering(
    ControlNetModel,
    {
        "text2image": StableDiffusionXLControlNetPipeline,
        "image2image": StableDiffusionXLControlNetImg2ImgPipeline,
        "inpaint": StableDiffusionXLControlNetInpaintPipeline,
    },
    _OF_UNETS,
)

STEERINGS: Mapping[str, Steering] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "StableDiffusionXLPipeline": _XL,
    "StableDiffusionXLInpaintPipeline": _XL,
    "StableDiffusion3Pipeline": Steering(
        SD3ControlNetModel, {"text2image": StableDiffusion3ControlNetPipeline}, _OF_TRANSFORMERS
    ),
    "FluxPipeline": Steering(
        FluxControlNetModel,
        {
            "text2image": FluxControlNetPipeline,
            "image2image": FluxControlNetImg2ImgPipeline,
            "inpaint": FluxControlNetInpaintPipeline,
        },
        (*_OF_TRANSFORMERS, "in_channels", "joint_attention_dim"),
    ),
}
"""By the pipeline that a model's folder names. What may be asked is in `app/domain/control.py`."""


class Network:
    """A loaded control network, and the pipelines over `loaded` that listen to it, by their tasks."""

    def __init__(self, part: Any, loaded: Any, steering: Steering, tasks: tuple[Task, ...]) -> None:
        self.part = part
        self.pipelines = {
            task: listening(loaded, kind, part)
            for task, kind in steering.classes.items()
            if task in tasks
        }

    @property
    def memory(self) -> int:
        """Bytes of its weights."""
        return sum(one.nbytes for one in (*self.part.parameters(), *self.part.buffers()))


class Networks:
    """Those of one loaded model, the one used last at the end. For any thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Network] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, card: ModelCard) -> Network | None:
        """The network; None also of one that was loaded from elsewhere, before cards were reread."""
        key = (card.id, card.source)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def add(self, card: ModelCard, network: Network) -> None:
        """One that goes for it lasts until the pictures that are drawn with it are done."""
        with self._lock:
            self._known[card.id, card.source] = network
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)

    @property
    def memory(self) -> int:
        with self._lock:
            return sum(one.memory for one in self._known.values())

    def clear(self) -> None:
        with self._lock:
            self._known.clear()


def listening(loaded: Any, kind: type[DiffusionPipeline], network: Any) -> Any:
    """The parts of `loaded` and the network, as a pipeline of class `kind`.

    Not by `from_pipe`, which casts all parts: they may be drawn with meanwhile.
    """
    known = inspect.signature(kind.__init__).parameters
    given = {**loaded.config, **loaded.components, "controlnet": network}
    return kind(**{name: value for name, value in given.items() if name in known})


def check(card: ModelCard, network: Any, denoiser: Any, shared: tuple[str, ...]) -> None:
    """Raises InvalidRequest: the network was made for another model; and ModelUnavailable: it wants
    more than a picture."""
    if network.config.get("num_mode") or network.config.get("extra_conditioning_channels"):
        text = (
            f"Control network {card.id} is one for several controls, which cannot be chosen here."
        )
        raise ModelUnavailable(text, param=PARAM)
    for name in shared:
        ours, theirs = network.config.get(name), denoiser.config.get(name)
        if ours is not None and theirs is not None and ours != theirs:
            raise InvalidRequest(
                f"Control network {card.id} is made for another kind of model.", param=PARAM
            )


def arguments(pipeline: Any, request: GenerationRequest) -> dict[str, Any]:
    """What a pipeline that listens is told beside what it would be told anyway. The control picture is
    brought to the size of what is drawn, whatever its proportions."""
    size = (request.width, request.height)
    picture = image_codec.decode_rgb(request.control_image or b"", "control.image", size)
    both = "control_image" in inspect.signature(type(pipeline).__call__).parameters
    return {
        "control_image" if both else "image": picture,
        "controlnet_conditioning_scale": request.controlnet_conditioning_scale,
        "control_guidance_start": request.control_guidance_start,
        "control_guidance_end": request.control_guidance_end,
    }
