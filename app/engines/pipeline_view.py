"""One picture's own view of a loaded pipeline.

A view shares all weights with the loaded pipeline and owns what a run changes: the scheduler,
guidance, the interrupt flag. Making one takes a tenth of a millisecond, so several pictures run the
stock pipeline at the same time, each in its own thread, with the results of running alone. Its heavy
parts are stand-ins: their work passes the turnstile, one piece at a time or merged with others'.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from app.domain.memory_plan import TILE
from app.engines.forward_batcher import Call, ForwardBatcher
from app.engines.prompt_cache import PromptCache
from app.engines.side_stream import beside, settle
from app.engines.stand_in import StandIn
from app.engines.step_gate import ImageGate
from app.engines.techniques import AloneOnly, Denoiser
from app.engines.turnstile import Rider, attempt

DENOISERS = ("unet", "transformer")


def view_of(
    pipeline: Any,
    scheduler: Any,
    gate: ImageGate,
    rider: Rider,
    denoisers: Mapping[str, Denoiser],
    prompts: PromptCache,
    *,
    layers: tuple[int, ...] = (),
    adapters: Hashable = (),
    tiled: bool = False,
    device: str = "",
    seed: int | None = None,
) -> Any:
    """A view of `pipeline` that steps with `scheduler`, passes through `gate` and works as `rider`.

    `denoisers` stand in for its parts of these names. `layers` of a language model are all that is
    looked at, where there are any. `adapters` tells which LoRAs are in the pipeline. `tiled` decodes in
    tiles, which takes less memory and may leave faint seams. `seed` makes up for pipelines that encode
    by chance.
    """
    view = object.__new__(type(pipeline))
    view.__dict__.update(pipeline.__dict__)
    view.__dict__["scheduler"] = scheduler
    view.__dict__["progress_bar"] = gate.denoising_loop
    for name, part in pipeline.components.items():
        if name in denoisers:
            view.__dict__[name] = _denoiser(denoisers[name], rider)
        elif name.startswith("text_encoder") and part is not None:
            view.__dict__[name] = _encoder(part, rider, prompts, layers, adapters)
        elif name == "vae":
            view.__dict__[name] = _autoencoder(part, rider, tiled=tiled, seed=seed)
        elif isinstance(part, torch.nn.Module):
            view.__dict__[name] = StandIn(part, _alone(rider, part))
        if device and name in view.__dict__ and isinstance(part, torch.nn.Module):
            view.__dict__[name].__dict__["device"] = torch.device(device)
    return view


def _alone(rider: Rider, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, done by the device's thread, or beside it where the device can do both."""

    @torch.inference_mode()
    def work(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return beside(partial(call, *args, **kwargs))

    return lambda *args, **kwargs: rider.do(partial(work, args, kwargs))


def _denoiser(denoiser: Denoiser, rider: Rider) -> StandIn:
    part = denoiser.denoiser

    def alone(*args: Any, **kwargs: Any) -> Any:
        # Of a kind of its own: it takes its turn at every step, but shares it with nobody.
        return rider.share(rider, partial(part, *args, **kwargs), _one_by_one)

    if isinstance(denoiser, AloneOnly):
        return StandIn(part, alone)

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = denoiser.call(args, kwargs)
        if call is None:
            return alone(*args, **kwargs)
        return rider.share(call.kind, call, partial(_together, denoiser))

    # Contexts tell step caches whose state is whose; no cache is ever on in a shared denoiser.
    return StandIn(part, forward, {"cache_context": lambda *_, **__: nullcontext()})


@torch.inference_mode()
def _together(denoiser: ForwardBatcher, calls: Sequence[Call]) -> Sequence[Any]:
    results = denoiser.together(calls)
    settle()
    return results


@torch.inference_mode()
def _one_by_one(calls: Sequence[Callable[[], Any]]) -> Sequence[Any]:
    results = [attempt(call) for call in calls]
    settle()
    return results


def _encoder(
    part: Any, rider: Rider, prompts: PromptCache, layers: tuple[int, ...], adapters: Hashable
) -> StandIn:
    alone = _alone(rider, part)

    def encode(*args: Any, **kwargs: Any) -> Any:
        def anew() -> Any:
            return _lean(alone(*args, **kwargs), layers)

        return prompts.get(part, args, kwargs, anew, adapters)

    return StandIn(part, encode)


def _lean(output: Any, layers: tuple[int, ...]) -> Any:
    """A language model's output without what no pipeline looks at: it is a hundred times as much."""
    if layers:
        states = output.hidden_states
        wanted = {layer % len(states) for layer in layers}
        output["hidden_states"] = tuple(
            state if layer in wanted else None for layer, state in enumerate(states)
        )
        for name in {"logits", "past_key_values"} & set(output):
            output[name] = None
    return output


class _Autoencoder(StandIn):
    """A VAE that is cast for its own view only.

    Pipelines of SDXL bring theirs to float32 to encode, and to decode where it is in float16, and back
    again: in the middle of what other pictures do with it.
    """

    def __init__(self, part: Any, rider: Rider, seed: int | None) -> None:
        super().__init__(part)
        self._whole, self._rider, self._seed = part, rider, seed

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return self._foreseen(_alone(self._rider, self._part.encode)(*args, **kwargs))

    def _foreseen(self, encoded: Any) -> Any:
        """What is encoded, sampled by the picture's seed where the pipeline says nothing: that of
        Stable Diffusion 3 under control takes the process's random numbers, never twice the same."""
        spread = getattr(encoded, "latent_dist", None)
        if spread is not None and self._seed is not None:
            sample, seed = spread.sample, self._seed
            spread.sample = lambda generator=None: sample(
                torch.Generator("cpu").manual_seed(seed) if generator is None else generator
            )
        return encoded

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return _alone(self._rider, self._part.decode)(*args, **kwargs)

    def to(self, *given: Any, **named: Any) -> _Autoencoder:
        dtypes = [one for one in (*given, *named.values()) if isinstance(one, torch.dtype)]
        if dtypes and dtypes[0] != self._part.dtype:
            is_back = dtypes[0] == self._whole.dtype
            self._part = self._whole if is_back else self._cast(dtypes[0])
        return self

    def _cast(self, dtype: torch.dtype) -> Any:
        return _alone(self._rider, lambda: copy.deepcopy(self._whole).to(dtype))()


def _autoencoder(part: Any, rider: Rider, *, tiled: bool, seed: int | None) -> StandIn:
    if tiled:
        part = copy.copy(part)  # the same weights under other flags
        part.enable_tiling()
        _shrink_tiles(part)
    return _Autoencoder(part, rider, seed)


def _shrink_tiles(vae: Any) -> None:
    """Tiles are as large as the pictures that a VAE was trained on: for most, the whole picture."""
    side = getattr(vae, "tile_sample_min_size", 0)
    if isinstance(side, int) and side > TILE:
        vae.tile_latent_min_size = vae.tile_latent_min_size * TILE // side
        vae.tile_sample_min_size = TILE


def words_of(part: Any) -> Any:
    """The tokenizer itself where a processor of words and pictures is around it."""
    return getattr(part, "tokenizer", part)


def one_at_a_time(tokenizer: Any) -> None:
    """Let only one thread at a time into a tokenizer that views share.

    A fast tokenizer first sets padding and truncation on its shared core and then encodes: a second
    thread in between changes the first one's prompt, and once in fifty pictures it did.
    """
    lock = threading.Lock()
    kind = type(tokenizer)

    def encode(self: Any, *given: Any, **named: Any) -> Any:
        with lock:
            return kind._encode_plus(self, *given, **named)  # noqa: SLF001

    # Calls, `encode` and `tokenize` all go through it. A saved pipeline names its parts by module.
    own = {"_encode_plus": encode, "__module__": kind.__module__}
    tokenizer.__class__ = type(kind.__name__, (kind,), own)
