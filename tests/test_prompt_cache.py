"""What text encoders made of words, kept for the next time.

Promised: equal words are encoded once, and what is given back is what the encoder made; the oldest go
when bytes run out; what is not words is never kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from app.engines.prompt_cache import PromptCache
from tests import zoo


class Encoder:
    """Makes 1000 bytes of the words, and counts how often it has to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, ids: Any, **options: Any) -> Tensor:
        self.calls += 1
        return torch.full((250,), float(torch.as_tensor(ids).sum()))


def words(*ids: int) -> Tensor:
    return torch.tensor([ids])


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


def asking(cache: PromptCache, encoder: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: cache.get(
        encoder, args, kwargs, lambda: encoder(*args, **kwargs)
    )


def test_equal_words_are_encoded_once(encoder: Encoder) -> None:
    ask = asking(PromptCache(), encoder)
    first = ask(words(1, 2, 3), attention_mask=None, output_hidden_states=True)
    again = ask(words(1, 2, 3), attention_mask=None, output_hidden_states=True)
    assert encoder.calls == 1
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((words(1, 2, 4),), {}),
        ((words(3, 2, 1),), {}),
        ((words(1, 2, 3).T,), {}),
        ((words(1, 2, 3).int(),), {}),
        ((words(1, 2, 3),), {"output_hidden_states": True}),
        ((words(1, 2, 3),), {"attention_mask": words(1, 1, 0)}),
        (([1, 2, 3],), {}),
    ],
)
def test_other_words_and_options_are_encoded_anew(
    encoder: Encoder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    ask = asking(PromptCache(), encoder)
    ask(words(1, 2, 3))
    ask(*args, **kwargs)
    assert encoder.calls == 2


def test_two_encoders_do_not_share_words() -> None:
    cache, one, other = PromptCache(), Encoder(), Encoder()
    asking(cache, one)(words(1))
    asking(cache, other)(words(1))
    assert (one.calls, other.calls) == (1, 1)


@pytest.mark.parametrize("value", [torch.ones(1, 3), torch.ones(1, 70000).long(), object()])
def test_what_is_not_words_is_never_kept(encoder: Encoder, value: Any) -> None:
    cache = PromptCache()
    for _ in range(2):
        cache.get(encoder, (value,), {}, lambda: encoder(1))
    assert encoder.calls == 2


def test_the_least_recently_used_go_when_bytes_run_out(encoder: Encoder) -> None:
    ask = asking(PromptCache(budget=3000), encoder)
    for word in (1, 2, 3, 1, 4):  # 2 is now the oldest and goes for 4
        ask(words(word))
    assert encoder.calls == 4
    for word in (3, 1, 4):
        ask(words(word))
    assert encoder.calls == 4
    ask(words(2))
    assert encoder.calls == 5


def test_an_output_larger_than_all_room_is_given_and_not_kept(encoder: Encoder) -> None:
    cache = PromptCache(budget=1500)
    ask = asking(cache, encoder)
    ask(words(1))
    big = cache.get(encoder, (words(2),), {}, lambda: torch.ones(1000))
    assert big.nbytes == 4000
    ask(words(1))
    assert encoder.calls == 1


def test_every_tensor_of_an_output_counts(encoder: Encoder) -> None:
    cache = PromptCache(budget=2500)

    def ask(word: int) -> None:
        def encode() -> Any:
            state = encoder(word)
            return BaseModelOutputWithPooling(last_hidden_state=state, hidden_states=(state + 1,))

        cache.get(encoder, (words(word),), {}, encode)

    for word in (1, 2, 1):
        ask(word)
    assert encoder.calls == 3


def test_after_clearing_all_is_encoded_anew(encoder: Encoder) -> None:
    cache = PromptCache(budget=1500)
    for _ in range(2):
        asking(cache, encoder)(words(1))
        cache.clear()
    assert encoder.calls == 2
    assert cache._bytes == 0


def test_a_failure_is_not_kept(encoder: Encoder) -> None:
    cache = PromptCache()

    def fail() -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.get(encoder, (words(1),), {}, fail)
    assert asking(cache, encoder)(words(1)).sum() == 250


def test_many_threads_get_what_they_asked_for(encoder: Encoder) -> None:
    cache = PromptCache(budget=3000)
    ask = asking(cache, encoder)
    wrong: list[int] = []
    together = threading.Barrier(4, timeout=20)

    def work(start: int) -> None:
        together.wait()
        for index in range(500):
            word = (start + index) % 5
            if ask(words(word))[0] != word:
                wrong.append(word)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 0 < cache._bytes <= 3000
    assert cache._bytes == sum(size for _, size in cache._kept.values())


def test_a_text_encoder_whose_adapter_changed_is_asked_anew() -> None:
    peft = pytest.importorskip("peft")
    encoder = zoo.PARTS["StableDiffusionPipeline"]()["text_encoder"]
    ask = asking(PromptCache(), encoder)
    adapter = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    encoder.add_adapter(adapter)
    layers = [module for module in encoder.modules() if hasattr(module, "scale_layer")]
    try:
        with torch.inference_mode():
            full = ask(words(1, 2, 3)).last_hidden_state
            for layer in layers:
                layer.scale_layer(0.25)
            less = ask(words(1, 2, 3)).last_hidden_state
            for layer in layers:
                layer.unscale_layer(0.25)
            again = ask(words(1, 2, 3)).last_hidden_state
    finally:
        encoder.delete_adapter("default")
    assert not torch.equal(full, less)
    assert torch.equal(full, again)


def test_what_adapters_make_of_words_is_kept_apart() -> None:
    """Also where another encoder came to lie in the memory of one that is gone."""
    cache = PromptCache()

    def encoded(value: float, adapters: str, **has: object) -> float:
        encoder.__dict__.update(has)
        made = cache.get(encoder, (words(1, 2),), {}, lambda: torch.tensor([value]), adapters)
        return float(made)

    encoder = Encoder()
    assert encoded(1, "a", peft_config={"x": 1}) == 1
    assert encoded(2, "b") == 2
    assert encoded(3, "a") == 1
    assert encoded(4, "a", peft_config={}) == 4  # the model's own encoder, beside adapted parts
    assert encoded(5, "b") == 4
