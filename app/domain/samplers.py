"""The sampler names that requests may use, and the diffusers scheduler class behind each.

A name stands for that class, built `.from_config` of the model folder's own scheduler config with
the overrides given here. Names follow k-diffusion, as every Stable Diffusion tool spells them; the
table of equivalents is in the diffusers documentation ("Schedulers", k-diffusion section).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec


class Sampler(msgspec.Struct, frozen=True):
    """`scheduler` is a class name in diffusers; `config` overrides the folder's own values.

    `edits` is false where the pipelines that start from a picture would begin at the wrong noise.
    """

    scheduler: str
    config: Mapping[str, object] = MappingProxyType({})
    edits: bool = True


_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

STABLE_DIFFUSION: Mapping[str, Sampler] = MappingProxyType(
    {
        "euler": Sampler("EulerDiscreteScheduler"),
        "euler_karras": Sampler("EulerDiscreteScheduler", _KARRAS),
        "euler_a": Sampler("EulerAncestralDiscreteScheduler"),
        "heun": Sampler("HeunDiscreteScheduler"),
        "dpmpp_2m": Sampler("DPMSolverMultistepScheduler"),
        "dpmpp_2m_karras": Sampler("DPMSolverMultistepScheduler", _KARRAS),
        "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", _SDE),
        "dpmpp_2m_sde_karras": Sampler("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS}),
        "dpmpp_sde": Sampler("DPMSolverSinglestepScheduler", _SDE),
        "dpmpp_sde_karras": Sampler("DPMSolverSinglestepScheduler", {**_SDE, **_KARRAS}),
        "ddim": Sampler("DDIMScheduler"),
        "ddpm": Sampler("DDPMScheduler"),
        "lms": Sampler("LMSDiscreteScheduler"),
        "pndm": Sampler("PNDMScheduler"),
        "unipc": Sampler("UniPCMultistepScheduler"),
        "lcm": Sampler("LCMScheduler"),
    }
)

FLOW: Mapping[str, Sampler] = MappingProxyType(
    {
        "euler": Sampler("FlowMatchEulerDiscreteScheduler"),
        # Img2img of Flux and its like counts doubled timesteps as steps: 0.7 would act like 0.5.
        "heun": Sampler("FlowMatchHeunDiscreteScheduler", edits=False),
    }
)
"""For models that were trained by flow matching."""

_OF_FLOWS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

SANA: Mapping[str, Sampler] = MappingProxyType(
    {
        "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", _OF_FLOWS),
        "unipc": Sampler("UniPCMultistepScheduler", _OF_FLOWS),
        "euler": Sampler("FlowMatchEulerDiscreteScheduler"),
    }
)

PIXART: Mapping[str, Sampler] = MappingProxyType(
    {
        # PixArt's pipelines tell of finished steps only; these two call the model more often.
        name: sampler
        for name, sampler in STABLE_DIFFUSION.items()
        if name not in {"heun", "pndm"}
    }
)

_OTHER_SPELLINGS = {
    "euler_ancestral": "euler_a",
    "plms": "pndm",
    "flowmatch_euler": "euler",
    "flow_match_euler": "euler",
    "flow_match_heun": "heun",
    "k_euler": "euler",
    "k_euler_a": "euler_a",
    "k_lms": "lms",
    "k_heun": "heun",
}


_WORDS = {"dpmpp": "DPM++"} | {w.lower(): w for w in ("Euler", "Heun", "Karras", "UniPC", "a")}
"""How A1111 writes what the names of samplers are made of; the rest it writes in capitals."""


def normalise(name: str) -> str:
    """`"DPM++ 2M Karras"` and `"dpmpp_2m_karras"` are one name."""
    plain = name.strip().lower().replace("++", "pp").replace(" ", "_").replace("-", "_")
    return _OTHER_SPELLINGS.get(plain, plain)


def spelled(name: str) -> str:
    """`dpmpp_2m_sde_karras` as A1111 and its clients write it: `DPM++ 2M SDE Karras`."""
    return " ".join(_WORDS.get(word, word.upper()) for word in name.split("_"))
