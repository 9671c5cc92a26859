"""A model card resolves what a client gave into a request that says everything.

Promised: what was not given is filled in, every limit is refused by the name of its field exactly
outside its bounds, whatever number a client sends, sizes round to what the model can draw, and the
seed is drawn once, here and nowhere else.
"""

from __future__ import annotations

import math

import pytest

from app.domain import samplers
from app.domain.errors import InvalidRequest
from app.domain.model_card import Defaults, Limits, ModelCard
from app.domain.request import Arguments, GenerationRequest

CARD = ModelCard(
    id="painter",
    family="stable_diffusion",
    source="/nowhere",
    tasks=("text2image", "image2image", "inpaint"),
    defaults=Defaults(
        width=256,
        height=192,
        num_inference_steps=12,
        guidance_scale=4.0,
        sampler="ddim",
        strength=0.5,
        negative_prompt="blurry",
        max_sequence_length=32,
    ),
    limits=Limits(
        min_side=128,
        max_side=512,
        multiple=8,
        max_steps=100,
        max_n=4,
        max_prompt_chars=50,
        max_guidance_scale=20.0,
        max_cost=4 * 512 * 512 * 100,
    ),
)
HUGE = 10**400
LIMITED = {
    "n": (1, 4),
    "width": (128, 512),
    "height": (128, 512),
    "num_inference_steps": (1, 100),
    "guidance_scale": (0.0, 20.0),
    "true_cfg_scale": (1.0, 20.0),
    "seed": (0, 2**32 - 1),
    "strength": (0.0, 1.0),
    "output_compression": (0, 100),
}


def resolve(card: ModelCard = CARD, /, **given: object) -> GenerationRequest:
    arguments = Arguments(**{"prompt": "a fox", **given})  # type: ignore[arg-type]
    return card.resolve(arguments, draw_seed=lambda: 77)


def refused(card: ModelCard = CARD, /, **given: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        resolve(card, **given)
    return caught.value


def test_what_is_not_given_comes_from_the_card() -> None:
    request = resolve()
    assert request == GenerationRequest(
        model="painter",
        family="stable_diffusion",
        task="text2image",
        prompt="a fox",
        negative_prompt="blurry",
        n=1,
        width=256,
        height=192,
        num_inference_steps=12,
        guidance_scale=4.0,
        true_cfg_scale=1.0,
        sampler="ddim",
        seed=77,
        strength=0.5,
        output_format="png",
        output_compression=100,
        max_sequence_length=32,
        pipeline="StableDiffusionPipeline",
    )
    assert (request.size, request.media_type) == ("256x192", "image/png")


def test_what_is_given_wins_even_where_it_is_zero_or_empty() -> None:
    request = resolve(
        negative_prompt="", guidance_scale=0.0, strength=0.0, seed=0, output_compression=0
    )
    assert (request.negative_prompt, request.guidance_scale, request.strength) == ("", 0.0, 0.0)
    assert (request.seed, request.output_compression) == (0, 0)


@pytest.mark.parametrize(
    ("field", "value"), [(field, bound) for field, both in LIMITED.items() for bound in both]
)
def test_the_bounds_themselves_are_allowed(field: str, value: float) -> None:
    assert getattr(resolve(**{field: value}), field) == value


@pytest.mark.parametrize("field", ["width", "height"])
def test_a_side_that_rounds_to_a_bound_is_allowed(field: str) -> None:
    low, high = LIMITED[field]
    assert getattr(resolve(**{field: low - 4}), field) == low
    assert getattr(resolve(**{field: high + 1}), field) == high


def outside(field: str) -> list[float]:
    low, high = LIMITED[field]
    if field in ("width", "height"):  # the nearest multiple of 8 counts
        return [low - 5, high + 5, -HUGE, HUGE]
    if isinstance(low, int):
        return [low - 1 if field != "seed" else -2, high + 1, -HUGE, HUGE]
    return [math.nextafter(low, -9), math.nextafter(high, 99), math.nan, math.inf, -math.inf, HUGE]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}-{value!r:.25}")
        for field in LIMITED
        for value in outside(field)
    ],
)
def test_just_outside_of_a_bound_is_refused_by_the_name_of_the_field(
    field: str, value: float
) -> None:
    error = refused(**{field: value})
    assert error.param == field
    assert error.code == "invalid_value"
    assert field in error.message


@pytest.mark.parametrize("field", ["n", "width", "num_inference_steps", "seed"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused_for_whole_fields_too(field: str, value: float) -> None:
    assert refused(**{field: value}).param == field


@pytest.mark.parametrize(
    ("given", "drawn"),
    [(128, 128), (131, 128), (133, 136), (255, 256), (257, 256), (507, 504), (509, 512)],
)
def test_a_side_rounds_to_the_nearest_multiple(given: int, drawn: int) -> None:
    request = resolve(width=given, height=given)
    assert (request.width, request.height) == (drawn, drawn)


def test_every_side_in_reach_rounds_to_a_multiple_within_half_of_one() -> None:
    for side in range(128, 513):
        drawn = resolve(width=side).width
        assert drawn % 8 == 0
        assert abs(drawn - side) <= 4
        assert 128 <= drawn <= 512


@pytest.mark.parametrize("given", [None, -1])
def test_a_seed_is_drawn_once_where_none_is_given_or_minus_one(given: int | None) -> None:
    draws = iter([123, 456])
    arguments = Arguments(prompt="a fox", seed=given)
    assert CARD.resolve(arguments, draw_seed=lambda: next(draws)).seed == 123
    assert next(draws) == 456


def test_a_given_seed_is_kept_and_none_is_drawn() -> None:
    def never() -> int:
        raise AssertionError("a seed was drawn")

    assert CARD.resolve(Arguments(prompt="a fox", seed=9), draw_seed=never).seed == 9


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpmpp-2m", "dpmpp_2m"),
        ("  Euler ", "euler"),
        ("euler_ancestral", "euler_a"),
        ("k_euler_a", "euler_a"),
        ("PLMS", "pndm"),
        ("Euler a", "euler_a"),
    ],
)
def test_samplers_answer_to_every_usual_spelling(spelling: str, name: str) -> None:
    assert resolve(sampler=spelling).sampler == name


@pytest.mark.parametrize("name", CARD.samplers)
def test_every_sampler_of_the_card_answers_to_its_own_name(name: str) -> None:
    assert resolve(sampler=name).sampler == name


def test_an_unknown_sampler_is_refused_and_the_known_ones_are_named() -> None:
    error = refused(sampler="brush")
    assert error.param == "sampler"
    assert all(name in error.message for name in samplers.STABLE_DIFFUSION)


def test_a_sampler_of_another_family_is_unknown() -> None:
    flux = CARD.model_copy(
        update={"family": "flux", "defaults": Defaults(sampler="euler", width=256, height=256)}
    )
    assert resolve(flux, sampler="flow_match_heun").sampler == "heun"
    assert refused(flux, sampler="ddim").param == "sampler"


def test_the_task_follows_from_the_pictures_given() -> None:
    assert resolve().task == "text2image"
    assert resolve(image=b"picture").task == "image2image"
    request = resolve(image=b"picture", mask_image=b"mask")
    assert (request.task, request.image, request.mask_image) == ("inpaint", b"picture", b"mask")


def test_a_mask_without_an_image_is_refused() -> None:
    assert refused(mask_image=b"mask").param == "image"


@pytest.mark.parametrize(
    ("task", "pictures"),
    [("image2image", {"image": b"i"}), ("inpaint", {"image": b"i", "mask_image": b"m"})],
)
def test_a_task_that_the_model_cannot_do_is_refused(task: str, pictures: dict[str, bytes]) -> None:
    error = refused(CARD.model_copy(update={"tasks": ("text2image",)}), **pictures)
    assert error.param == "model"
    assert task in error.message


def test_an_edit_must_reach_one_step() -> None:
    error = refused(image=b"i", strength=0.24, num_inference_steps=4)
    assert error.param == "strength"
    assert resolve(image=b"i", strength=0.25, num_inference_steps=4).total_steps == 1


def test_strength_does_not_matter_without_an_image() -> None:
    assert resolve(strength=0.0, num_inference_steps=4, n=3).total_steps == 12


@pytest.mark.parametrize(
    ("steps", "strength", "total"), [(12, 0.5, 12), (10, 0.75, 14), (20, 1.0, 40), (9, 0.999, 16)]
)
def test_an_edit_counts_only_the_steps_that_run_for_all_its_images(
    steps: int, strength: float, total: int
) -> None:
    request = resolve(image=b"i", num_inference_steps=steps, strength=strength, n=2)
    assert request.total_steps == total
    assert request.steps_per_image == total // 2


def test_the_product_of_images_pixels_and_steps_is_capped() -> None:
    limits = CARD.limits.model_copy(update={"max_cost": 2 * 256 * 256 * 10})
    card = CARD.model_copy(update={"limits": limits})
    at_most = {"n": 2, "width": 256, "height": 256, "num_inference_steps": 10}
    assert resolve(card, **at_most).n == 2
    error = refused(card, **{**at_most, "num_inference_steps": 11})
    assert error.param == "n"
    assert str(2 * 256 * 256 * 10) in error.message


@pytest.mark.parametrize("prompt", ["", " ", "\n\t\u2003"])
def test_a_prompt_must_show_something(prompt: str) -> None:
    assert refused(prompt=prompt).param == "prompt"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", ["a\x00b", "a\ud800b", "\udfff"])
def test_what_is_not_text_is_refused(field: str, text: str) -> None:
    error = refused(**{field: text})
    assert error.param == field
    error.message.encode()  # the answer itself can be sent


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_texts_have_a_longest_length_counted_in_characters(field: str) -> None:
    assert getattr(resolve(**{field: "é" * 50}), field) == "é" * 50
    assert refused(**{field: "é" * 51}).param == field


@pytest.mark.parametrize(
    ("given", "name", "media_type"),
    [
        ("png", "png", "image/png"),
        ("PNG", "png", "image/png"),
        ("jpg", "jpeg", "image/jpeg"),
        ("jpeg", "jpeg", "image/jpeg"),
        ("WebP", "webp", "image/webp"),
    ],
)
def test_output_formats(given: str, name: str, media_type: str) -> None:
    request = resolve(output_format=given)
    assert (request.output_format, request.media_type) == (name, media_type)


@pytest.mark.parametrize("name", ["gif", "svg", "", "image/png"])
def test_other_output_formats_are_refused(name: str) -> None:
    assert refused(output_format=name).param == "output_format"
