"""The shell and a server: drawing there, its jobs, its models, and what a person sees of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.main import get_command

from app.cli import shell
from app.cli._shell import ENDS
from app.cli.speed import Sample, summed
from tests.conftest import CARDS
from tests.gateway import Gateway, free_port
from tests.pictures import pixels
from tests.shell_house import Easel, at_home, easel, ended, house, submitted

__all__ = ["at_home", "easel", "house"]  # fixtures


# -- drawing at a server ---------------------------------------------------------------------------


def test_pictures_are_drawn_there_and_fetched(easel: Easel, house: Gateway, tmp_path: Path) -> None:
    how = ("--steps", "3", "--seed", "7", "--n", "2", "--width", "128", "--negative-prompt", "hen")
    done = easel("generate", "a fox", *how, "-o", "fox.webp", "--json", EASEL_SERVER=house.url)
    assert done.code == 0, done.err
    told = done.json
    assert [(one["file"], one["seed"]) for one in told["files"]] == [
        ("fox-1.webp", 7),
        ("fox-2.webp", 8),
    ]
    with house.client() as client:
        job = client.get(f"/jobs/{told['id']}").json()
        there = client.get(f"/images/{job['images'][1]}").content
    assert (tmp_path / "fox-2.webp").read_bytes() == there
    assert (job["prompt"], job["size"], job["num_inference_steps"]) == ("a fox", "128x64", 3)
    assert (job["negative_prompt"], job["door"], told["status"]) == ("hen", "jobs", "succeeded")
    assert pixels(there).shape == (64, 128, 3)


def test_one_that_begins_with_a_picture_is_sent_as_such(easel: Easel, house: Gateway) -> None:
    Path("in.png").write_bytes(picture_of(house, easel))
    Path("mask.png").write_bytes(Path("in.png").read_bytes())
    how = ("--model", "painter", "--strength", "0.5", "--steps", "6", "--lora", "none:0.5")
    begun = ("--image", "in.png", "--mask", "mask.png", "--server", house.url, "--json")
    refused = easel("generate", "x", *how, *begun)
    assert (refused.code, refused.json["error"]["code"]) == (2, "lora_not_found")
    done = easel("generate", "x", *how[:-2], *begun)
    assert done.code == 0, done.err
    with house.client() as client:
        job = client.get(f"/jobs/{done.json['id']}").json()
        events = client.get(f"/jobs/{done.json['id']}/events").text
    assert (job["door"], job["model"], job["num_inference_steps"]) == ("openai", "painter", 6)
    assert '"total_steps":3' in events  # by its strength it leaves out the first half


def picture_of(house: Gateway, easel: Easel) -> bytes:
    easel("generate", "x", "-o", "first.png", "--server", house.url)
    return Path("first.png").read_bytes()


def test_what_cannot_be_said_to_a_server_is_not_left_out(easel: Easel, house: Gateway) -> None:
    Path("in.png").write_bytes(b"")
    for words, why in (
        (("--mask", "in.png"), "A mask needs an image"),
        (("--control-image", "in.png"), "A control image needs a control network"),
        (("--style", "dramatic", "--style", "plain"), "one style"),
    ):
        done = easel("generate", "x", *words, "--server", house.url)
        assert (done.code, why in done.err) == (2, True), done.err
    with house.client() as client:
        assert client.get("/jobs", params={"q": "hen"}).json()["jobs"] is not None


def test_scripts_get_a_line_for_each_event(easel: Easel, house: Gateway) -> None:
    done = easel("generate", "x", "--steps", "3", "--json-events", "--server", house.url)
    *events, last = done.lines
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["event"], events[-1]["event"]) == ("queued", "succeeded")
    steps = [event["step"] for event in events if event.get("step")]
    assert steps[:3] == [1, 2, 3]
    assert last["files"][0]["file"] == "out.png"


def test_what_the_server_refuses_is_told_as_it_is_here(easel: Easel, house: Gateway) -> None:
    there = easel("generate", "x", "--width", "7", "--server", house.url)
    assert there.code == 2
    assert there.err == "easel: width: width must be between 64 and 2048."
    assert there.out == ""


# -- jobs ------------------------------------------------------------------------------------------


def test_jobs_are_listed_as_they_were_asked_for(easel: Easel, house: Gateway) -> None:
    ended(house, submitted(house, prompt="ein Kanarienvogel im Schnee"))
    ended(house, submitted(house, prompt="ein Kanarienvogel", model="lab/batch", steps=1))
    ended(house, submitted(house, prompt="ein Spatz"))
    told = easel("jobs", "list", "--search", "kanarien", "--json").json
    assert [job["model"] for job in told] == ["lab/batch", "fake"]
    one = easel("jobs", "list", "--search", "kanarien", "--model", "fake", "--limit", "1", "--json")
    assert [job["prompt"] for job in one.json] == ["ein Kanarienvogel im Schnee"]
    table = easel("jobs", "list", "--search", "kanarien", "--status", "succeeded", COLUMNS="120")
    head, first, _ = table.out.splitlines()
    assert head.split() == ["id", "status", "left", "model", "age", "prompt"]
    assert first.split()[:3] == [told[0]["id"], "succeeded", "lab/batch"]
    assert easel("jobs", "list", "--search", "kanarien", "--status", "failed", "--json").json == []
    assert easel("jobs", "list", "--status", "nonsense").code == 2


def test_the_exit_code_tells_how_a_job_ended(easel: Easel, house: Gateway) -> None:
    good = submitted(house)
    assert easel("jobs", "watch", good).code == 0
    broken = submitted(house, model="broken")
    failed = easel("jobs", "watch", broken, "--json")
    assert (failed.code, failed.json["status"]) == (1, "failed"), failed
    late = submitted(house, model="lab/slow", steps=200, deadline=1)
    expired = easel("jobs", "watch", late, "--json")
    assert (expired.code, expired.json["error"]["code"]) == (4, "deadline_exceeded")
    other = submitted(house, model="lab/slow", steps=500)
    timer = threading.Timer(1, lambda: httpx.delete(f"{house.url}/jobs/{other}"))
    timer.start()
    cancelled = easel("jobs", "watch", other)
    timer.join()
    assert (cancelled.code, cancelled.err) == (3, "easel: The job was cancelled.")
    unknown = easel("jobs", "watch", "01M80J6KE95W326GT9845V7628")
    assert (unknown.code, unknown.err) == (2, "easel: id: There is no such job.")
    assert easel("jobs", "watch", "../keys").code == 2


def test_all_that_are_not_done_are_watched(easel: Easel, house: Gateway) -> None:
    first = submitted(house, model="lab/slow", steps=20)
    second = submitted(house, model="lab/slow", steps=500)
    timer = threading.Timer(2.5, lambda: httpx.delete(f"{house.url}/jobs/{second}"))
    timer.start()
    done = easel("jobs", "watch", "--json-events")
    timer.join()
    *events, last = done.lines
    assert last == {"jobs": {first: "succeeded", second: "cancelled"}}
    assert done.code == 3
    assert {event["job_id"] for event in events} == {first, second}
    none = easel("jobs", "watch")
    assert (none.code, none.err) == (0, "no job of yours is under way")


def test_jobs_are_cancelled_and_the_others_too_if_one_is_unknown(
    easel: Easel, house: Gateway
) -> None:
    going = submitted(house, model="lab/slow", steps=500)
    over = submitted(house, model="lab/slow", steps=500)
    done = easel("jobs", "cancel", going, "nope", over)
    assert done.code == 1
    assert done.out == f"{going}  cancelled\n{over}  cancelled\n"
    assert done.err == "easel: nope: There is no such job."
    assert easel("jobs", "cancel", going, "--json").json == {going: "cancelled"}


def test_a_job_is_drawn_again(easel: Easel, house: Gateway) -> None:
    first = ended(house, submitted(house, prompt="a wolf", steps=2))
    done = easel("jobs", "replay", first["id"], "-o", "again.png", "--json")
    assert done.code == 0, done.err
    assert done.json["id"] != first["id"]
    there = httpx.get(f"{house.url}/images/{first['images'][0]}").content
    assert (pixels(Path("again.png").read_bytes()) == pixels(there)).all()
    left = easel("jobs", "replay", first["id"])
    assert ended(house, left.out.strip())["prompt"] == "a wolf"


# -- models, speed ---------------------------------------------------------------------------------


def held(house: Gateway) -> list[str]:
    models: list[str] = httpx.get(f"{house.url}/ready").json()["workers"][0]["models"]
    return models


def test_models_are_loaded_and_let_go(easel: Easel, house: Gateway) -> None:
    done = easel("models", "load", "lab/batch")
    assert (done.code, done.out) == (0, "lab/batch is held by fake\n")
    assert "lab/batch" in held(house)
    told = easel("models", "unload", "lab/batch", "--json").json
    assert told == {"id": "lab/batch", "held": False, "workers": []}
    assert "lab/batch" not in held(house)
    for words in (("load", "nope"), ("unload", "../keys"), ("pull", "nope", "--server", house.url)):
        assert easel("models", *words).code == 2


def test_a_model_in_use_is_let_go_when_it_is_done(easel: Easel, house: Gateway) -> None:
    job = submitted(house, model="lab/slow", steps=30)
    deadline = time.monotonic() + 20
    while httpx.get(f"{house.url}/jobs/{job}").json()["step"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    done = easel("models", "unload", "lab/slow")
    assert done.out == "lab/slow leaves fake once it is idle\n"
    assert ended(house, job)["status"] == "succeeded"
    while "lab/slow" in held(house):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_models_of_a_server_are_listed_like_those_here(easel: Easel, house: Gateway) -> None:
    there = easel("models", "list", "--server", house.url, "--json").json
    states = {card["id"]: card["state"] for card in there}
    assert states["painter"] == "bundled"
    assert states["sd15-canny"] == "not_downloaded"
    here = easel("models", "--json", EASEL_MODELS_DIR=str(CARDS)).json
    assert {card["id"] for card in here} == states.keys() - {"painter", "broken"}


def test_lists_of_a_server_are_those_that_it_has(easel: Easel, house: Gateway) -> None:
    """The settings here name none of it."""
    elsewhere = {"EASEL_SERVER": house.url, "EASEL_CONTROLS_DIR": "nowhere"}
    styles = easel("styles", "--json", **elsewhere).json
    assert styles == easel("styles", "--json").json
    assert "dramatic" in easel("styles", **elsewhere).out
    controls = {one["id"] for one in easel("controls", "--json", **elsewhere).json}
    assert "sdxl-canny" in controls
    assert easel("controls", "--server", "", "--json", **elsewhere).json == []
    assert easel("loras", "list", "--json", **elsewhere).json == []
    nowhere = f"http://127.0.0.1:{free_port()}"
    for words in (("styles",), ("controls",), ("loras", "list")):
        assert easel(*words, EASEL_SERVER=nowhere).code == 1
        assert easel(*words, "--server", "", EASEL_SERVER=nowhere).code == 0


def test_the_speed_of_a_server_is_measured_and_nothing_is_left(
    easel: Easel, house: Gateway
) -> None:
    wish = ("--prompt", "Tempomat", "--steps", "2")
    done = easel("bench", "speed", "-n", "5", "-c", "2", *wish, "--json")
    assert done.code == 0, done.err
    told = done.json
    assert (told["jobs"], told["pictures"], told["at_once"], told["errors"]) == (5, 5, 2, {})
    assert 0 < told["first_p50"] < told["p50"] <= told["p95"] < told["seconds"]
    assert told["pictures_per_second"] == pytest.approx(5 / told["seconds"])
    with house.client() as client:
        assert client.get("/jobs", params={"q": "Tempomat"}).json()["jobs"] == []
    failed = easel("bench", "speed", "-n", "2", "-c", "1", "--model", "nope", "--json")
    assert (failed.code, failed.json["errors"]) == (1, {"model_not_found": 2})
    assert easel("bench", "speed", "-n", "100000").code == 2


def test_speed_counts_what_ended_well() -> None:
    good = [Sample(seconds, seconds / 2, 1, None) for seconds in (4.0, 1.0, 2.0, 3.0)]
    told = summed([*good, Sample(9.0, None, 0, "queue_full")], 8.0, 2)
    assert (told.p50, told.p95, told.first_p50) == (2.0, 4.0, 1.0)
    assert (told.pictures_per_second, told.errors) == (0.5, {"queue_full": 1})
    assert summed([], 1.0, 1).p50 is None


def test_statistics_are_those_of_the_server(easel: Easel, house: Gateway, tmp_path: Path) -> None:
    ended(house, submitted(house))
    nothing_here = str(tmp_path / "data")
    there = easel("stats", "--server", house.url, "--json", EASEL_DATA_DIR=nothing_here).json
    assert {kind["model"] for kind in there["generation"]} >= {"fake"}
    assert easel("stats", "--json").json["statuses"] == there["statuses"]


# -- Tab -------------------------------------------------------------------------------------------


def test_bash_completes_names_and_jobs(at_home: Gateway) -> None:
    job = submitted(at_home)
    script = """
        eval "$(_EASEL_COMPLETE=source_bash easel)"
        complete -p easel
        tab() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _easel_completion easel
            echo "${COMPREPLY[@]}"
        }
        tab easel generate --model lab/s
        tab easel generate --sampler dpmpp_2m_s
        tab easel jobs watch "$JOB"
        EASEL_SERVER=http://127.0.0.1:1 tab easel jobs watch ""
        tab easel jo
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "EASEL_MODELS_DIR": str(CARDS),
        "JOB": job[:20],
    }
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    kind, model, sampler, ids, none, command = done.stdout.splitlines()
    assert kind == "complete -o default -F _easel_completion easel"
    assert model == "lab/slow"
    assert sampler.split() == ["dpmpp_2m_sde", "dpmpp_2m_sde_karras"]
    assert job in ids.split()
    assert (none, command) == ("", "jobs")
    assert done.stderr == ""


# -- the page --------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "shell.md").read_text()


def commands(group: Any, *names: str) -> Iterator[str]:
    """The full name of every command."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, *names, name)
        else:
            yield " ".join((*names, name))


def test_the_page_tells_every_command_with_an_example_that_it_takes() -> None:
    tree = get_command(shell)
    rows = re.findall(r"^\| `easel ([a-z ]+)` \| .+ \| `easel (.+)` \|$", PAGE, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(commands(tree))
    for name, example in rows:
        words = shlex.split(example.partition(" > ")[0])
        assert " ".join(words).startswith(name)
        given = words[len(name.split()) :]
        one: Any = tree
        for part in name.split():
            one = one.commands[part]
        one.make_context(name, given, resilient_parsing=False).close()  # raises for wrong use


def test_the_page_tells_every_exit_code() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert told == {2, 130, *ENDS.values()}
