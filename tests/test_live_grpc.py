"""The gRPC door as it comes, with the bundled models: what clients ask for, and what they get."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_tools import protoc

from tests.gateway import Gateway
from tests.grpc_clients import (
    MOST,
    PROTO,
    Client,
    Curl,
    client,
    http,
    noise,
    refusal,
    serving,
    stubs,
)
from tests.pictures import colour_at, corners, pixels
from tests.test_live_metrics import figures

__all__ = ["client", "http", "serving", "stubs"]  # fixtures

SMALL: dict[str, Any] = {"steps": 4, "width": 128, "height": 128}
CANARY = "kanarienvogel"

SEED = """
syntax = "proto3";
package starweave;
message ImageRequest {
  string prompt = 1; string model = 2; ImageSettings settings = 3; string user_id = 4;
  repeated string context = 5;
}
message ImageResponse {
  string request_id = 1; bytes image_data = 2; string format = 3; GenerationMetadata metadata = 4;
  string error = 5;
}
message ImageSettings {
  int32 width = 1; int32 height = 2; int32 steps = 3; float guidance_scale = 4; int32 seed = 5;
  string style = 6;
}
message GenerationMetadata { string model = 1; }
"""
"""What the contract gives, as clients have it that were made before this door."""


# -- pictures --------------------------------------------------------------------------------------


def test_the_picture_is_that_of_http(client: Client, http: httpx.Client) -> None:
    wish = {"prompt": "a red circle on a white background", "seed": 7, "guidance_scale": 6.1}
    answer, call = client.images.GenerateImage.with_call(client.request(**wish, **SMALL))
    body = {**wish, "steps": 4, "size": "128x128"}
    [other] = http.post("/v1/images/generations", json=body).json()["data"]
    there = pixels(base64.b64decode(other["b64_json"]))
    here = pixels(answer.image_data)
    assert np.array_equal(here, there)
    assert (colour_at(here, 0.5, 0.5), corners(here)) == ("red", {"white"})
    assert (answer.format, answer.error) == ("png", "")
    told = answer.metadata
    assert (told.model, told.seed, told.steps, told.width, told.height) == (
        "sketch",
        7,
        4,
        128,
        128,
    )
    assert 0 < told.generation_time_ms < 60_000
    assert abs(told.generated_at.ToSeconds() - time.time()) < 60
    headers = dict(call.initial_metadata())
    assert headers["x-easel-job"] == answer.request_id
    assert http.get(f"/images/{told.image_id}").content == answer.image_data
    job = http.get(f"/jobs/{answer.request_id}").json()
    assert (job["door"], job["status"], job["prompt"]) == ("grpc", "succeeded", wish["prompt"])
    assert (job["guidance_scale"], job["deadline"]) == (6.1, None)


def test_zero_is_a_seed_and_absent_is_none(client: Client) -> None:
    given = client.images.GenerateImage(client.request(seed=0, **SMALL))
    drawn = [
        client.images.GenerateImage(client.request(**SMALL, **seed)).metadata.seed
        for seed in ({}, {"seed": -1})
    ]
    assert given.metadata.seed == 0
    assert all(0 < seed < 2**31 for seed in drawn)
    assert len(set(drawn)) == 2
    again = client.images.GenerateImage(client.request(seed=drawn[0], **SMALL))
    assert again.metadata.seed == drawn[0]


def test_a_client_made_of_the_contract_alone(client: Client, tmp_path: Path) -> None:
    """Its messages have no presence: what it does not set is not sent, and is the default here."""
    (tmp_path / "seed.proto").write_text(SEED)
    made = tmp_path / "seed.bin"
    assert (
        protoc.main(["protoc", f"-I{tmp_path}", f"--descriptor_set_out={made}", "seed.proto"]) == 0
    )
    pool = descriptor_pool.DescriptorPool()
    [file] = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file
    pool.Add(file)
    found = (pool.FindMessageTypeByName(f"starweave.Image{one}") for one in ("Request", "Response"))
    ask, answer = (message_factory.GetMessageClass(kind) for kind in found)
    call: Any = client.bare.unary_unary(
        "/starweave.ImageGenerationService/GenerateImage",
        request_serializer=ask.SerializeToString,
        response_deserializer=answer.FromString,
    )
    wish: Any = ask(prompt="a red circle", user_id="ann", context=["we spoke of circles"])
    wish.settings.width = wish.settings.height = 128
    wish.settings.style = "pixel-art"
    drawn = call(wish)
    assert pixels(drawn.image_data).shape == (128, 128, 3)
    assert (drawn.format, drawn.metadata.model) == ("png", "sketch")
    job = client.job(drawn.request_id)
    assert (job.steps, job.style, job.owner) == (12, "pixel-art", "local")
    assert "spoke" not in job.prompt
    for name, message in pool.FindFileByName("seed.proto").message_types_by_name.items():
        ours = client.pb.DESCRIPTOR.message_types_by_name[name].fields_by_number
        for number, field in message.fields_by_number.items():
            assert (ours[number].name, ours[number].type) == (field.name, field.type), name


def test_progress_only_grows_and_ends_with_the_picture(client: Client) -> None:
    wish = client.request(seed=3, previews=2, **(SMALL | {"steps": 6}))
    events = list(client.images.GenerateImageStream(wish))
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    told = [event.progress for event in events if event.HasField("progress")]
    progress = [one.progress for one in told]
    assert (progress, progress[-1]) == (sorted(progress), 100.0)
    assert {one.HasField("fraction") for one in told if one.phase == "queued"} == {False}
    fractions = [one.fraction for one in told if one.phase != "queued"]
    assert (fractions, fractions[-1]) == (sorted(fractions), 1.0)
    assert [one.step for one in told if one.HasField("step")][:6] == [1, 2, 3, 4, 5, 6]
    assert {one.total_steps for one in told if one.HasField("step")} == {6}
    assert [one.phase for one in told if one.phase != "generating"] == [
        "queued",
        "initializing",
        "loading_model",
        "preparing",
        "post_processing",
        "complete",
    ]
    previews = [one.preview for one in told if one.preview]
    assert len(previews) == 2
    assert all(pixels(one).shape[2] == 3 for one in previews)
    assert all(one.eta_seconds > 0 for one in told[:-1] if one.phase != "complete")
    [picture] = [event.image for event in events if event.HasField("image")]
    assert pixels(picture.image_data).shape == (128, 128, 3)
    assert (events[-1].ended.status, events[-1].ended.images[0].metadata.seed) == ("succeeded", 3)


def test_variations_come_one_by_one_with_seeds_that_follow(client: Client) -> None:
    ask = client.pb.ImageVariationsRequest(base_request=client.request(seed=11, **SMALL), count=3)
    answers = list(client.images.GenerateImageVariations(ask))
    assert [one.metadata.seed for one in answers] == [11, 12, 13]
    assert [one.metadata.index for one in answers] == [0, 1, 2]
    assert len({one.request_id for one in answers}) == 1
    second = client.images.GenerateImage(client.request(seed=12, **SMALL))
    assert np.array_equal(pixels(answers[1].image_data), pixels(second.image_data))
    one = client.pb.ImageVariationsRequest(base_request=client.request(seed=11, **SMALL))
    assert len(list(client.images.GenerateImageVariations(one))) == 1
    ask.count = -1
    told = refusal(lambda: client.images.GenerateImageVariations(ask))
    assert (told.code, told.field) == (StatusCode.INVALID_ARGUMENT, "count")


def test_a_large_picture_goes_in_and_a_larger_one_comes_out(client: Client) -> None:
    large = noise(1400)
    assert len(large) > 4 << 20  # what gRPC takes if nobody says otherwise
    wish = client.request("", model="lanczos", image=large, upscale=2)
    answer = client.images.GenerateImage(wish)
    assert pixels(answer.image_data).shape == (2800, 2800, 3)
    assert (answer.metadata.width, len(answer.image_data) > len(large)) == (2800, True)
    drawn = client.images.GenerateImage(client.request(steps=2, width=512, height=512, upscale=4))
    assert pixels(drawn.image_data).shape == (2048, 2048, 3)
    too_much = client.request(image=bytes(MOST + 1))
    assert refusal(lambda: client.images.GenerateImage(too_much)).code is (
        StatusCode.RESOURCE_EXHAUSTED
    )


def test_a_picture_is_drawn_from_a_picture(client: Client, http: httpx.Client) -> None:
    first = client.images.GenerateImage(client.request("a blue square", seed=5, **SMALL))
    wish = {"prompt": "a red circle", "seed": 5, "strength": 0.5, "steps": 8}
    base = client.request(
        image=first.image_data, **{k: v for k, v in wish.items() if k != "strength"}
    )
    ask = client.pb.ImageVariationsRequest(base_request=base, variation_strength=0.5)
    [answer] = client.images.GenerateImageVariations(ask)
    files = {"image": first.image_data}
    form = {name: str(value) for name, value in wish.items()}
    [other] = http.post("/v1/images/edits", data=form, files=files).json()["data"]
    there = pixels(base64.b64decode(other["b64_json"]))
    assert np.array_equal(pixels(answer.image_data), there)


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"prompt": " "}, "prompt"),
        ({"steps": 0}, "settings.steps"),
        ({"steps": 100_000}, "settings.steps"),
        ({"width": 20_000}, "settings.width"),
        ({"seed": -2}, "settings.seed"),
        ({"guidance_scale": float("nan")}, "settings.guidance_scale"),
        ({"style": "no such style"}, "settings.style"),
        ({"sampler": "no such sampler"}, "settings.sampler"),
        ({"priority": "urgent"}, "settings.priority"),
        ({"timeout": 0.1}, "settings.timeout"),
        ({"previews": 99}, "settings.previews"),
        ({"image": b"no picture"}, "image"),
        ({"mask_image": b"GIF89a"}, "mask_image"),
    ],
)
def test_what_is_wrong_is_named(client: Client, given: dict[str, Any], field: str) -> None:
    told = refusal(lambda: client.images.GenerateImage(client.request(**given)))
    assert (told.code, told.reason) == (StatusCode.INVALID_ARGUMENT, "invalid_value")
    assert (told.field, told.retry) == (field, None)


def test_what_is_not_there_is_not_found(client: Client, serving: tuple[Gateway, int]) -> None:
    told = refusal(lambda: client.images.GenerateImage(client.request(model="no-such-model")))
    assert (told.code, told.reason, told.field) == (
        StatusCode.NOT_FOUND,
        "model_not_found",
        "model",
    )
    for call in (client.job, client.watch, client.cancel):
        for name in ("01M80JF93MVZ6ZJEJ2GK9F7X4N", "", "../etc", "\n"):
            missing = refusal(lambda call=call, name=name: call(name))  # type: ignore[misc]
            assert (missing.code, missing.field) == (StatusCode.NOT_FOUND, "job_id")
    assert refusal(lambda: client.watch("x", after=-1)).field == "after"
    nowhere: Any = client.bare.unary_unary(f"/starweave.{CANARY}/Call")
    assert refusal(lambda: nowhere(b"")).code is StatusCode.UNIMPLEMENTED
    here: Any = client.bare.unary_unary("/starweave.ImageGenerationService/GenerateImage")
    garbage = refusal(lambda: here(b"\xff\xff\xff"))
    assert (garbage.code, garbage.reason) == (StatusCode.INVALID_ARGUMENT, "invalid_value")
    assert CANARY not in serving[0].log.read_text()


# -- what the server tells of itself ---------------------------------------------------------------


def test_one_that_knows_nothing_asks_and_draws(serving: tuple[Gateway, int]) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{serving[1]}") as channel:
        curl = Curl(channel)
        assert "/starweave.JobService/WatchJob" in curl.methods()
        service = "starweave.ImageGenerationService"
        settings = {"steps": 2, "width": 128, "height": 128, "seed": 9}
        drawn = curl.call(f"{service}/GenerateImage", prompt="a red circle", settings=settings)
        assert drawn["metadata"]["seed"] == "9"
        assert pixels(base64.b64decode(drawn["image_data"])).shape == (128, 128, 3)
        models = {one["id"]: one for one in curl.call(f"{service}/GetImageModels")["models"]}
        assert models["sketch"]["loaded"]
        assert models["sketch"]["capabilities"] == ["text2image", "image2image", "inpaint"]
        assert models["sketch"]["parameters"]["steps"] == "int32"
        assert models["sketch"]["defaults"]["steps"] == 12
        assert "negative_prompt" not in models["flux2-klein"]["parameters"]


def test_health_is_told_for_each_service(client: Client) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    for name in ("", "starweave.ImageGenerationService", "starweave.JobService"):
        check = client.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert check.status == serving, name
    unknown = health_pb2.HealthCheckRequest(service="starweave.Nobody")
    assert refusal(lambda: client.health.Check(unknown)).code is StatusCode.NOT_FOUND


def test_calls_are_counted_and_written_down_without_their_words(
    client: Client, serving: tuple[Gateway, int], http: httpx.Client
) -> None:
    drawn = client.images.GenerateImage.with_call(
        client.request(f"a {CANARY}", **SMALL), metadata=(("x-request-id", "my-own-id"),)
    )
    assert dict(drawn[1].initial_metadata())["x-request-id"] == "my-own-id"
    log = serving[0].log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    [line] = [one for one in lines if one.get("request_id") == "my-own-id"]
    method = "/starweave.ImageGenerationService/GenerateImage"
    assert (line["event"], line["method"], line["code"]) == ("call", method, "OK")
    assert (line["client"], line["seconds"] > 0, "key" in line) == ("127.0.0.1", True, False)
    assert CANARY not in log
    assert not [one for one in lines if "Health" in one.get("method", "")]
    assert {one["client"] for one in lines if one["event"] == "call"} == {"127.0.0.1"}
    told = figures(http)
    assert told[f'easel_grpc_calls_total{{code="OK",method="{method}"}}'] >= 1
    assert told['easel_grpc_calls_total{code="UNIMPLEMENTED",method="unknown"}'] == 1
    assert told['easel_jobs_total{door="grpc",model="sketch",status="succeeded"}'] >= 1


def test_the_client_of_the_docs_draws(serving: tuple[Gateway, int], tmp_path: Path) -> None:
    text = (PROTO.parents[3] / "docs" / "grpc.md").read_text("utf-8")
    make, client = (
        text.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("sh", "python")
    )
    command = shlex.split(make.splitlines()[-1].replace("app/api/grpc", str(PROTO.parent)))
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=tmp_path, timeout=60)
    (tmp_path / "client.py").write_text(client.replace("50051", str(serving[1])))
    done = subprocess.run(
        [sys.executable, "client.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert colour_at(pixels((tmp_path / "circle.png").read_bytes()), 0.5, 0.5) == "red"
    assert "100.0 %" in done.stdout
    assert " 42 " in done.stdout


def test_the_contract_lies_in_one_place() -> None:
    assert list(PROTO.parents[2].rglob("*.proto")) == [PROTO]
