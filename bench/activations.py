"""What models compute with, besides their weights: bytes for each pixel, counted without a device.

    python -m bench.activations

The real architectures run on torch's meta device, where tensors have sizes and no contents, and every
piece of memory is counted from when it is made until it is let go. Attention counts as fused: what it
makes is its result. The denoiser of a guided picture gets two rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from bench.architectures import ARCHITECTURES, Architecture

_SIDES = (512, 1024)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`most` is how many bytes of what was made under it were alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most: int = 0
        self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_flatten(made)[0]:
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata  # noqa: SLF001 - what tells one piece of memory from another here
        if place not in self._alive:
            self._alive[place] = storage.nbytes()
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._gone, place)

    def _gone(self, place: int) -> None:
        self._now -= self._alive.pop(place)


def _fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def bytes_of(work: Callable[[], Any]) -> int:
    """Bytes that `work`, on the meta device, holds at its fullest."""
    with (
        torch.inference_mode(),
        patch.object(functional, "scaled_dot_product_attention", _fused),
        _Counter() as counter,
    ):
        work()
    most: int = counter.most
    return most


@contextmanager
def _on_paper() -> Iterator[None]:
    """What is made inside has no contents, and two bytes a number."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


def of_decoder(arch: Architecture, side: int) -> float:
    """Bytes a pixel of the decoder, with two bytes a number."""
    with _on_paper():
        vae = diffusers.AutoencoderKL(**arch.vae)
        small = side // 2 ** (len(vae.config.block_out_channels) - 1)
        latents = torch.empty(1, vae.config.latent_channels, small, small)
        return bytes_of(lambda: vae.decode(latents, return_dict=False)) / side**2


def of_denoiser(arch: Architecture, side: int) -> float:
    """Bytes a pixel of the denoiser, with two bytes a number."""
    with _on_paper():
        denoiser = getattr(diffusers, arch.denoiser)(**arch.config)
        given = _call(arch, denoiser.config, side // 8)

        def forward() -> None:
            denoiser(**given, return_dict=False)

        return bytes_of(forward) / side**2


def _call(arch: Architecture, config: Any, side: int) -> dict[str, Any]:
    """A forward's arguments, at `side` latents."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape)

    words = arch.embeddings(config, empty)
    if arch.pipeline == "FluxPipeline":
        patches, length = side**2 // 4, words["prompt_embeds"].shape[1]
        return {
            "hidden_states": empty(1, patches, config["in_channels"]),
            "timestep": empty(1),
            "encoder_hidden_states": words["prompt_embeds"],
            "pooled_projections": words["pooled_prompt_embeds"],
            "img_ids": empty(patches, 3),
            "txt_ids": empty(length, 3),
        }
    if arch.pipeline == "ZImagePipeline":
        pictures = [empty(config["in_channels"], 1, side, side)]
        return {"x": pictures, "t": empty(1), "cap_feats": words["prompt_embeds"]}
    given = {
        "sample": empty(2, 4, side, side),
        "timestep": empty(2),
        "encoder_hidden_states": words["prompt_embeds"].expand(2, -1, -1),
    }
    if "pooled_prompt_embeds" in words:
        pooled = words["pooled_prompt_embeds"].expand(2, -1)
        given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": empty(2, 6)}
    return given


def main() -> None:
    print("| model | part | " + " | ".join(f"{side} x {side}" for side in _SIDES) + " |")
    print("|---" * (2 + len(_SIDES)) + "|")
    for arch in ARCHITECTURES:
        for part, count in (("denoiser", of_denoiser), ("decoder", of_decoder)):
            figures = " | ".join(f"{count(arch, side):.0f}" for side in _SIDES)
            print(f"| {arch.name} | {part} | {figures} |")


if __name__ == "__main__":
    main()
