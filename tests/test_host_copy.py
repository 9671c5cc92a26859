"""Weights that leave a device and return: the same bits, one copy each way in, none on the way out.

There need be no GPU: "the device" is a second place in this machine's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from app.engines.host_copy import HostCopy
from app.engines.weight_bytes import weight_bytes
from app.engines.weights import load_pipeline
from app.settings import load_cards


class Tied(nn.Module):
    """Weights of every kind: tied, shared under two names, channels-last, of no dimension, empty."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.words.weight
        self.alias = nn.Parameter(self.words.weight.data)  # another parameter, the same memory
        self.conv = nn.Conv2d(8, 8, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("table", torch.arange(8.0).expand(4, 8), persistent=False)
        self.register_buffer("nothing", torch.empty(0))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.words(tokens)) + self.get_buffer("table")[0]
        hidden = self.conv(hidden.T[None, :, :, None])[0, :, :, 0].T
        result: Tensor = self.out(hidden)
        return result


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which copies and allocations torch makes meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies = 0
        self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name.startswith(("copy_", "_to_copy", "clone")):
            self.copies += 1
        elif not name.startswith(("detach", "empty")):
            self.others += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Counting]:
    with Counting() as counter:
        yield counter


def weights(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@pytest.fixture(params=[False, True], ids=["as-they-lie", "packed"])
def pin(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_whatever_moves_the_bits_and_the_result_stay(pin: bool) -> None:
    model, tokens = Tied().eval(), torch.tensor([1, 5, 9])
    before = [weight.detach().clone() for weight in weights(model)]
    strides = [weight.stride() for weight in model.parameters()]
    with torch.inference_mode():
        drawn = model(tokens)
    copy = HostCopy([model], "cpu", pin=pin)
    for move in (copy.to_device, copy.to_host, copy.to_device, copy.to_device):
        move()
        assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
        assert [weight.stride() for weight in model.parameters()] == strides
        with torch.inference_mode():
            assert torch.equal(model(tokens), drawn)


def test_each_weight_is_copied_once_on_the_way_in_and_never_on_the_way_out(pin: bool) -> None:
    model = Tied()
    copy = HostCopy([model], "cpu", pin=pin)
    at_home = [weight.data_ptr() for weight in weights(model)]
    places = len({weight.data_ptr() for weight in weights(model)})  # 0, too: the empty one
    with counting() as inwards:
        copy.to_device()
    away = [weight.data_ptr() for weight in weights(model)]
    assert inwards.copies == places
    assert not {*at_home} & {*away} - {0}
    with counting() as outwards:
        copy.to_host()
    assert (outwards.copies, outwards.others) == (0, 0)
    assert [weight.data_ptr() for weight in weights(model)] == at_home


def test_shared_weights_stay_shared(pin: bool) -> None:
    model = Tied()
    copy = HostCopy([model], "cpu", pin=pin)
    for move in (copy.to_device, copy.to_host):
        move()
        assert model.out.weight is model.words.weight
        assert model.alias.data_ptr() == model.words.weight.data_ptr()


def test_weights_that_two_modules_share_are_counted_and_copied_once(pin: bool) -> None:
    first = nn.Linear(4, 4, bias=False)
    second = nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    copy = HostCopy([first, second, first], "cpu", pin=pin)
    assert copy.memory == 64
    with counting() as counter:
        copy.to_device()
    assert counter.copies == 1


def test_without_packing_the_copy_is_the_weights_themselves() -> None:
    model = Tied()
    before = [weight.data_ptr() for weight in weights(model)]
    with counting() as counter:
        HostCopy([model], "cpu", pin=False)
    assert counter.copies == 0
    assert [weight.data_ptr() for weight in weights(model)] == before


def test_when_the_device_has_no_room_the_weights_are_back_home(
    monkeypatch: pytest.MonkeyPatch, pin: bool
) -> None:
    model = Tied()
    copy = HostCopy([model], "cpu", pin=pin)
    at_home = [weight.data_ptr() for weight in weights(model)]
    make = torch.empty_like
    made: list[Tensor] = []

    def small_device(*args: Any, **named: Any) -> Tensor:
        if len(made) == 3:
            raise torch.OutOfMemoryError("the device is full")
        made.append(make(*args, **named))
        return made[-1]

    monkeypatch.setattr(torch, "empty_like", small_device)
    with pytest.raises(torch.OutOfMemoryError):
        copy.to_device()
    assert [weight.data_ptr() for weight in weights(model)] == at_home


def test_moving_under_inference_mode_leaves_ordinary_weights(pin: bool) -> None:
    model = Tied()
    copy = HostCopy([model], "cpu", pin=pin)
    with torch.inference_mode():
        copy.to_device()
    assert not any(weight.is_inference() for weight in weights(model))


def test_half_precision_and_integers_keep_their_types() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)
    model.register_buffer("places", torch.arange(3))
    copy = HostCopy([model], "cpu", pin=True)
    copy.to_device()
    assert {weight.dtype for weight in weights(model)} == {torch.bfloat16, torch.int64}
    assert torch.equal(model.get_buffer("places"), torch.arange(3))


def test_a_whole_pipeline_draws_the_same_wherever_its_weights_have_been() -> None:
    card = load_cards(Path(__file__).parent.parent / "config" / "models")["sketch"]
    pipeline = load_pipeline(card, StableDiffusionPipeline, "cpu")
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]

    def drawn() -> Tensor:
        picture: Tensor = pipeline(
            "a red circle",
            width=128,
            height=128,
            num_inference_steps=2,
            generator=torch.Generator("cpu").manual_seed(3),
            output_type="pt",
        ).images
        return picture

    expected = drawn()
    copy = HostCopy(parts, "cpu", pin=True)
    assert copy.memory == pytest.approx(weight_bytes(card, "cpu"), rel=0.01)
    for move in (copy.to_device, copy.to_host, copy.to_device):
        move()
        assert torch.equal(drawn(), expected)
