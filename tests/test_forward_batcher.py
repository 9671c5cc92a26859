"""Calls of one denoiser by several requests, merged into one forward and split again.

Promised: a call that nobody shares is made as it came, bit for bit; shared calls give what each gives
alone up to rounding (relative 1e-5); calls that cannot be merged never are; and whatever goes wrong
in one of them, its neighbours get what they asked for.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from app.engines.base import Sharing
from app.engines.forward_batcher import Call, ForwardBatcher
from app.engines.turnstile import Turnstile
from tests import zoo

SIDE = 16
Arguments = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _quiet_and_on_one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@dataclass
class Subject:
    """A tiny denoiser, its batcher, and the rows of each forward that it did."""

    denoiser: Any
    batcher: ForwardBatcher
    arguments: Callable[..., Arguments]
    forwards: list[int] = field(default_factory=list)

    def call(self, arguments: Arguments) -> Call:
        call = self.batcher.call((), arguments)
        assert call is not None
        return call

    def alone(self, arguments: Arguments) -> Any:
        return self.denoiser(**arguments)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def for_unet(seed: int = 0, rows: int = 2, size: int = SIDE, words: int = 8) -> Arguments:
    return {
        "sample": noise(rows, 4, size, size, seed=seed),
        "timestep": 37 * (seed + 1),
        "encoder_hidden_states": noise(rows, words, 32, seed=seed + 100),
        "return_dict": False,
    }


def for_flux(seed: int = 0, rows: int = 1, size: int = SIDE, words: int = 8) -> Arguments:
    places = torch.arange(size * size // 4)
    ids = torch.stack([places * 0, places // (size // 2), places % (size // 2)], dim=1).float()
    return {
        "hidden_states": noise(rows, size * size // 4, 16, seed=seed),
        "timestep": torch.full((rows,), (seed + 1) / 20),
        "guidance": torch.full((rows,), 1.0 + seed),
        "pooled_projections": noise(rows, 32, seed=seed + 200),
        "encoder_hidden_states": noise(rows, words, 32, seed=seed + 100),
        "txt_ids": torch.zeros(words, 3),
        "img_ids": ids,
        "return_dict": False,
    }


def for_sd3(seed: int = 0, rows: int = 2, size: int = SIDE, words: int = 8) -> Arguments:
    return {
        "hidden_states": noise(rows, 4, size, size, seed=seed),
        "timestep": torch.full((rows,), 37.0 * (seed + 1)),
        "pooled_projections": noise(rows, 64, seed=seed + 200),
        "encoder_hidden_states": noise(rows, words, 64, seed=seed + 100),
        "return_dict": False,
    }


BUILT: dict[str, tuple[Callable[..., Any], Callable[..., Arguments]]] = {
    "unet": (zoo.unet, for_unet),
    "flux": (zoo.flux_transformer, for_flux),
    "sd3": (zoo.sd3_transformer, for_sd3),
}


def built(name: str) -> Subject:
    build, arguments = BUILT[name]
    denoiser = build()
    subject = Subject(denoiser, ForwardBatcher(denoiser), arguments)

    def note(_: Any, args: tuple[Any, ...], kwargs: Arguments) -> None:
        named: Any = kwargs.get("sample", kwargs.get("hidden_states"))
        picture = args[0] if args else named
        subject.forwards.append(len(picture))

    denoiser.register_forward_pre_hook(note, with_kwargs=True)
    return subject


@pytest.fixture(params=BUILT)
def any_of(request: pytest.FixtureRequest) -> Subject:
    return built(request.param)


@pytest.fixture
def unet() -> Subject:
    return built("unet")


def relative(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


def shared_like_alone(subject: Subject, given: list[Arguments]) -> None:
    """All calls are of one kind, are done in one forward, and give what each gives alone."""
    expected = [subject.alone(arguments) for arguments in given]
    calls = [subject.call(arguments) for arguments in given]
    assert len({call.kind for call in calls}) == 1
    subject.forwards.clear()
    results = subject.batcher.together(calls)
    assert subject.forwards == [sum(call.rows for call in calls)]
    for result, alone in zip(results, expected, strict=True):
        assert type(result) is type(alone)
        assert result[0].shape == alone[0].shape
        assert relative(result[0], alone[0]) <= 1e-5


# -- exactness -------------------------------------------------------------------------------------


def test_a_call_alone_is_made_as_it_came(any_of: Subject) -> None:
    arguments = any_of.arguments()
    (result,) = any_of.batcher.together([any_of.call(arguments)])
    assert torch.equal(result[0], any_of.alone(arguments)[0])


def test_rows_differ_in_noise_prompt_timestep_and_guidance(any_of: Subject) -> None:
    shared_like_alone(any_of, [any_of.arguments(seed) for seed in range(5)])


def test_calls_with_and_without_a_guidance_branch_share(any_of: Subject) -> None:
    given = [any_of.arguments(seed, rows) for seed, rows in enumerate((1, 2, 1, 3))]
    shared_like_alone(any_of, given)


@pytest.mark.parametrize("return_dict", [True, False])
def test_results_come_back_in_the_form_that_was_asked_for(
    any_of: Subject, return_dict: bool
) -> None:
    given = [any_of.arguments(seed) | {"return_dict": return_dict} for seed in range(2)]
    shared_like_alone(any_of, given)


def test_timesteps_may_be_numbers_or_tensors(unet: Subject) -> None:
    steps = [7, 999, 3.5, torch.tensor(81), torch.tensor(17.25), torch.tensor([500, 500])]
    steps += [torch.tensor([8.0]), torch.tensor(900, dtype=torch.float64)]
    given = [for_unet(seed) | {"timestep": step} for seed, step in enumerate(steps)]
    shared_like_alone(unet, given)


def test_positional_arguments_share_with_named_ones(unet: Subject) -> None:
    one, other = for_unet(1), for_unet(2)
    positional = (one["sample"], one["timestep"], one["encoder_hidden_states"])
    calls = [unet.batcher.call(positional, {"return_dict": False}), unet.call(other)]
    assert calls[0] is not None
    assert calls[1] is not None
    assert calls[0].kind == calls[1].kind
    results = unet.batcher.together([calls[0], calls[1]])
    assert relative(results[0][0], unet.alone(one)[0]) <= 1e-5


@pytest.mark.parametrize("kind", [list, tuple])
def test_controlnet_residuals_stay_with_their_rows(unet: Subject, kind: type[Any]) -> None:
    def given(seed: int) -> Arguments:
        sizes = [(8, 16), (8, 16), (8, 8), (16, 8)]
        residuals = [noise(2, *size, size[1], seed=seed + at) for at, size in enumerate(sizes)]
        return for_unet(seed) | {
            "down_block_additional_residuals": kind(residuals),
            "mid_block_additional_residual": noise(2, 16, 8, 8, seed=seed + 9),
        }

    plain = unet.alone(for_unet(0))[0]
    assert relative(unet.alone(given(0))[0], plain) > 1e-3
    shared_like_alone(unet, [given(seed) for seed in range(3)])


def test_flux_controlnet_samples_stay_with_their_rows() -> None:
    subject = built("flux")

    def given(seed: int) -> Arguments:
        samples = [noise(1, SIDE * SIDE // 4, 32, seed=seed + 5)]
        return for_flux(seed) | {"controlnet_block_samples": samples}

    shared_like_alone(subject, [given(seed) for seed in range(3)])


def test_adapter_residuals_that_the_denoiser_uses_up_are_whole_when_a_fault_repeats_the_call(
    unet: Subject,
) -> None:
    def given(seed: int) -> Arguments:
        residuals = [noise(2, 8, 8, 8, seed=seed + 5), noise(2, 16, 8, 8, seed=seed + 6)]
        return for_unet(seed) | {"down_intrablock_additional_residuals": residuals}

    expected = [unet.alone(given(seed))[0] for seed in range(2)]
    failing(unet, lambda rows: rows > 2, ValueError("no"))
    results = unet.batcher.together([unet.call(given(seed)) for seed in range(2)])
    assert all(torch.equal(result[0], one) for result, one in zip(results, expected, strict=True))


def test_the_second_text_encoders_words_and_the_size_stay_with_their_rows() -> None:
    denoiser = zoo.denoiser(zoo.pipeline("StableDiffusionXLPipeline"))
    batcher = ForwardBatcher(denoiser)

    def given(seed: int) -> Arguments:
        pooled, size = noise(2, 32, seed=seed + 3), torch.full((2, 6), 16.0 * (seed + 1))
        return for_unet(seed) | {
            "encoder_hidden_states": noise(2, 8, 64, seed=seed),
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": size},
        }

    calls = [call for seed in range(3) if (call := batcher.call((), given(seed))) is not None]
    assert len({call.kind for call in calls}) == 1
    for seed, result in enumerate(batcher.forward(calls)):
        assert relative(result[0], denoiser(**given(seed))[0]) <= 1e-5


def test_half_precision_rows_are_those_of_calls_alone_up_to_its_rounding(any_of: Subject) -> None:
    any_of.denoiser.to(torch.bfloat16)

    def given(seed: int) -> Arguments:
        return {
            name: value.bfloat16() if isinstance(value, Tensor) and "ids" not in name else value
            for name, value in any_of.arguments(seed).items()
        }

    expected = [any_of.alone(given(seed))[0] for seed in range(3)]
    calls = [any_of.call(given(seed)) for seed in range(3)]
    for result, alone in zip(any_of.batcher.together(calls), expected, strict=True):
        assert result[0].dtype == torch.bfloat16
        assert relative(result[0].float(), alone.float()) <= 2e-2


# -- what does not mix -----------------------------------------------------------------------------


def apart(subject: Subject, one: Arguments, other: Arguments) -> bool:
    return subject.call(one).kind != subject.call(other).kind


def test_sizes_and_prompt_lengths_do_not_mix(any_of: Subject) -> None:
    assert apart(any_of, any_of.arguments(), any_of.arguments(size=8))
    assert apart(any_of, any_of.arguments(), any_of.arguments(words=9))


def test_data_types_do_not_mix(any_of: Subject) -> None:
    for name, value in any_of.arguments().items():
        if isinstance(value, Tensor) and name not in {"timestep", "txt_ids", "img_ids"}:
            assert apart(any_of, any_of.arguments(), any_of.arguments() | {name: value.double()})


def test_forms_of_result_do_not_mix(any_of: Subject) -> None:
    assert apart(any_of, any_of.arguments(), any_of.arguments() | {"return_dict": True})


def test_denoisers_do_not_mix() -> None:
    assert built("unet").call(for_unet()).kind != built("unet").call(for_unet()).kind


@pytest.mark.parametrize("name", ["img_ids", "txt_ids"])
def test_places_of_other_pictures_do_not_mix(name: str) -> None:
    subject = built("flux")
    moved = for_flux() | {name: for_flux()[name] + 1}
    assert apart(subject, for_flux(), moved)
    assert not apart(subject, for_flux(), for_flux(1) | {name: for_flux()[name].clone()})


def test_options_do_not_mix(unet: Subject) -> None:
    def given(scale: float) -> Arguments:
        return for_unet() | {"cross_attention_kwargs": {"scale": scale}}

    assert apart(unet, given(0.5), given(1.0))
    assert apart(unet, given(0.5), for_unet())
    assert not apart(unet, given(0.5), given(0.5))


def test_calls_with_and_without_residuals_do_not_mix(unet: Subject) -> None:
    residual = {"mid_block_additional_residual": noise(2, 16, 8, 8)}
    assert apart(unet, for_unet(), for_unet() | residual)


@pytest.mark.parametrize(
    "odd",
    [
        {"cross_attention_kwargs": {"mask": torch.ones(2)}},
        {"cross_attention_kwargs": {"how": object()}},
        {"encoder_hidden_states": noise(1, 8, 32)},
        {"class_labels": torch.tensor(3)},
        {"never_heard_of": 1},
        {"sample": [noise(4, 8, 8)]},
    ],
    ids=["tensor", "object", "other rows", "no rows", "unknown", "list"],
)
def test_what_is_not_understood_is_not_shared(unet: Subject, odd: Arguments) -> None:
    assert unet.batcher.call((), for_unet() | odd) is None


def test_an_argument_that_is_missing_is_left_to_the_denoiser_to_say(unet: Subject) -> None:
    assert unet.batcher.call((), {"timestep": 1}) is None


def test_an_unknown_class_is_not_shared() -> None:
    class Other(UNet2DModel):  # type: ignore[misc]
        """Not of the list, and whether its rows see each other is not known."""

    assert ForwardBatcher(Other.__new__(Other)).call((noise(1, 4, 8, 8), 1), {}) is None


# -- faults ----------------------------------------------------------------------------------------


def failing(subject: Subject, when: Callable[[int], bool], error: BaseException) -> None:
    """Forwards with that many rows raise the error from now on."""

    def check(_: Any, args: tuple[Any, ...], kwargs: Arguments) -> None:
        if when(subject.forwards[-1]):
            raise error

    subject.denoiser.register_forward_pre_hook(check, with_kwargs=True)


def test_the_exception_of_one_call_is_its_own(unet: Subject) -> None:
    expected = [unet.alone(for_unet(seed))[0] for seed in range(3)]
    bad = 1

    def check(_: Any, args: tuple[Any, ...], kwargs: Arguments) -> None:
        if (kwargs["sample"] == 77.0).any():
            raise ValueError("the one with 77")

    unet.denoiser.register_forward_pre_hook(check, with_kwargs=True)
    given = [for_unet(seed) for seed in range(3)]
    given[bad]["sample"][0, 0, 0, 0] = 77.0
    results = unet.batcher.together([unet.call(arguments) for arguments in given])
    assert isinstance(results[bad], ValueError)
    for index in (0, 2):
        assert torch.equal(results[index][0], expected[index])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_stay_in_their_own_rows(any_of: Subject, value: float) -> None:
    expected = [any_of.alone(any_of.arguments(seed))[0] for seed in range(3)]
    given = [any_of.arguments(seed) for seed in range(3)]
    given[1]["encoder_hidden_states"][:] = value
    results = any_of.batcher.together([any_of.call(arguments) for arguments in given])
    assert not torch.isfinite(results[1][0]).any()
    for index in (0, 2):
        assert relative(results[index][0], expected[index]) <= 1e-5


def test_where_memory_is_short_fewer_share_from_then_on(unet: Subject) -> None:
    given = [for_unet(seed) for seed in range(8)]
    expected = [unet.alone(arguments)[0] for arguments in given]
    failing(unet, lambda rows: rows > 6, torch.OutOfMemoryError("full"))
    calls = [unet.call(arguments) for arguments in given]

    def forwards() -> list[int]:
        unet.forwards.clear()
        for result, alone in zip(unet.batcher.together(calls), expected, strict=True):
            assert relative(result[0], alone) <= 1e-5
        return list(unet.forwards)

    assert forwards() == [16] + [2] * 8
    assert forwards() == [8] + [2] * 4 + [4] * 2  # half as many, until even those fit
    assert forwards() == [4] * 4
    assert forwards() == [4] * 4


def test_a_limit_is_only_for_calls_of_that_kind(unet: Subject) -> None:
    small = [unet.call(for_unet(seed, size=8)) for seed in range(4)]
    large = [unet.call(for_unet(seed)) for seed in range(4)]
    failing(unet, lambda rows: rows > 4, torch.OutOfMemoryError("full"))
    unet.batcher.together(large)
    unet.forwards.clear()
    unet.batcher.together(small)
    assert unet.forwards[0] == 8


def test_where_nothing_fits_each_is_told_and_nothing_is_held(unet: Subject) -> None:
    held: list[weakref.ref[Tensor]] = []

    def fill(_: Any, args: tuple[Any, ...], kwargs: Arguments) -> None:
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("full")

    unet.denoiser.register_forward_pre_hook(fill, with_kwargs=True)
    results = unet.batcher.together([unet.call(for_unet(seed)) for seed in range(3)])
    assert [type(result) for result in results] == [torch.OutOfMemoryError] * 3
    gc.collect()
    assert [one() for one in held] == [None] * 4


def test_what_a_call_that_ran_out_of_memory_held_is_free_for_its_neighbour(unet: Subject) -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def fill(_: Any, args: tuple[Any, ...], kwargs: Arguments) -> None:
        alive.append(any(one() is not None for one in held))
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("full")

    unet.denoiser.register_forward_pre_hook(fill, with_kwargs=True)
    unet.batcher.together([unet.call(for_unet(seed)) for seed in range(3)])
    assert alive == [False] * 4


# -- faults of the runs that share, through the turnstile ------------------------------------------


class Gone(Exception):
    """The run was called off."""


class Party:
    """Runs that are certain to share one forward, which a test can hold."""

    def __init__(self, subject: Subject, count: int) -> None:
        self.turnstile = Turnstile()
        self.subject = subject
        self.count = count
        self.results: dict[int, Any] = {}
        self.errors: dict[int, BaseException] = {}
        self.shared = threading.Event()
        self.go = threading.Event()
        self.calls_off: set[int] = set()
        self._first = threading.Event()
        subject.denoiser.register_forward_pre_hook(self._hold, with_kwargs=True)

    def _hold(self, *_: Any) -> None:
        if self.subject.forwards[-1] > 2:
            self.shared.set()
            assert self.go.wait(20)

    @torch.inference_mode()
    def _together(self, calls: Any) -> Any:
        return self.subject.batcher.together(calls)

    def _run(self, index: int, leave: Callable[[int], bool]) -> None:
        def check() -> None:
            if index in self.calls_off:
                raise Gone

        standing = self.turnstile.rider(Sharing((0, 0.0), 8), check)
        rider = standing.__enter__()
        call = self.subject.call(for_unet(index))
        try:
            self.results[index] = rider.share(call.kind, call, self._together)
        except BaseException as error:
            self.errors[index] = error
        if not leave(index):
            return  # the thread ends and nobody closed its standing
        standing.__exit__(None, None, None)

    def run(self, leave: Callable[[int], bool] = lambda index: True) -> list[threading.Thread]:
        """All wait behind a first piece and are then done together; back when that began."""
        blocker = threading.Thread(target=self._block)
        blocker.start()
        threads = [
            threading.Thread(target=self._run, args=(index, leave)) for index in range(self.count)
        ]
        for thread in threads:
            thread.start()
        while len(self.turnstile._pending) < self.count:
            threading.Event().wait(0.001)
        self._first.set()
        assert self.shared.wait(20)
        blocker.join()
        return threads

    def _block(self) -> None:
        with self.turnstile.rider(Sharing((0, -1.0))) as rider:
            rider.do(lambda: self._first.wait(20))


def test_a_run_called_off_in_mid_batch_does_not_hurt_its_neighbours(unet: Subject) -> None:
    expected = [unet.alone(for_unet(index))[0] for index in range(3)]
    party = Party(unet, 3)
    threads = party.run()
    party.calls_off.add(1)
    party.go.set()
    for thread in threads:
        thread.join(20)
    for index in (0, 2):
        assert relative(party.results[index][0], expected[index]) <= 1e-5
    assert unet.forwards[-1] == 6


def test_a_run_whose_thread_died_in_mid_batch_does_not_hurt_its_neighbours(unet: Subject) -> None:
    expected = [unet.alone(for_unet(index))[0] for index in range(3)]
    party = Party(unet, 3)
    threads = party.run(leave=lambda index: index != 1)
    party.go.set()
    for thread in threads:
        thread.join(20)
    for index in range(3):
        assert relative(party.results[index][0], expected[index]) <= 1e-5
    with party.turnstile.rider(Sharing((0, 0.0), 8)) as rider:  # nobody waits for the dead one
        call = unet.call(for_unet(0))
        assert torch.equal(rider.share(call.kind, call, party._together)[0], expected[0])
