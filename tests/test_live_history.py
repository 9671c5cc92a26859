"""The history over HTTP: found, marked, fetched by link, drawn again, forgotten; and live feeds."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway

GENERATIONS = "/v1/images/generations"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of its own, that believes who its users are."""
    environment = {
        **fake_settings(),
        "EASEL_TRUST_USER_HEADER": "true",
        "EASEL_MAX_QUEUE": "100",
        "EASEL_LINK_SECONDS": "2",
    }
    with running_gateway(tmp_path_factory.mktemp("data"), environment) as started:
        yield started


@pytest.fixture
def client(house: Gateway) -> Iterator[httpx.Client]:
    with house.client() as opened:
        yield opened


def draw(client: httpx.Client, prompt: str, owner: str = "", **given: Any) -> dict[str, Any]:
    """A job that has succeeded, as /jobs shows it."""
    headers = {"X-OpenWebUI-User-Id": owner} if owner else {}
    answer = client.post(GENERATIONS, json={"prompt": prompt, **given}, headers=headers)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = client.get(f"/jobs/{answer.headers['x-easel-job']}").json()
    assert shown["status"] == "succeeded"
    return shown


def listed(client: httpx.Client, **given: Any) -> list[str]:
    answer = client.get("/jobs", params=given)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["jobs"]]


def test_jobs_are_found_by_words_and_by_what_they_are(client: httpx.Client) -> None:
    fox = draw(client, "A crimson FOX on a café table", owner="finder", size="64x128")
    owl = draw(client, "a crimson owl", owner="finder")
    of_both = {"owner": "finder"}
    assert listed(client, **of_both) == [owl["id"], fox["id"]]
    assert listed(client, q="crim fox", **of_both) == [fox["id"]]
    assert listed(client, q="cafe", **of_both) == [fox["id"]]
    assert listed(client, q="heron", **of_both) == []
    assert listed(client, size="64x128", **of_both) == [fox["id"]]
    assert listed(client, status="succeeded", **of_both) == [owl["id"], fox["id"]]
    assert listed(client, status="failed", **of_both) == []
    assert listed(client, model="lab/slow", **of_both) == []
    assert listed(client, door="openai", until=owl["created"], **of_both) == [fox["id"]]
    assert listed(client, since=owl["created"], **of_both) == [owl["id"]]


def test_a_new_job_says_at_once_when_it_will_be_done(client: httpx.Client) -> None:
    wait(client, client.post("/jobs", json={"prompt": "x", "steps": 50}).json()["id"])
    running = client.post("/jobs", json={"prompt": "x", "steps": 50}).json()
    waiting = client.post("/jobs", json={"prompt": "x", "steps": 50}).json()
    assert 0.3 < running["eta_seconds"] < waiting["eta_seconds"]
    assert waiting["queue_position"] == 1
    wait(client, waiting["id"])


def test_pages_hold_every_job_once(client: httpx.Client) -> None:
    for number in range(7):
        draw(client, f"page {number}", owner="pager", steps=1)
    seen: list[str] = []
    cursor = None
    while True:
        given: dict[str, str | int] = {"owner": "pager", "limit": 3}
        given |= {"cursor": cursor} if cursor else {}
        page = client.get("/jobs", params=given).json()
        seen += [job["prompt"] for job in page["jobs"]]
        cursor = page["cursor"]
        if cursor is None:
            break
        draw(client, "comes in between", owner="someone else", steps=1)
    assert seen == [f"page {number}" for number in reversed(range(7))]
    assert client.get("/jobs", params={"cursor": "x"}).json()["error"]["param"] == "cursor"


def test_tags_and_favourites(client: httpx.Client) -> None:
    job = draw(client, "to be marked", owner="marker")
    draw(client, "not to be marked", owner="marker")
    (image,) = job["images"]
    assert client.put(f"/jobs/{job['id']}/tags/for the wall").json()["tags"] == ["for the wall"]
    assert client.put(f"/images/{image}/favourite").status_code == 200
    assert listed(client, tag="for the wall", owner="marker") == [job["id"]]
    assert listed(client, favourite=True, owner="marker") == [job["id"]]
    shown = client.get(f"/jobs/{job['id']}").json()
    assert (shown["tags"], shown["favourites"]) == (["for the wall"], [image])
    assert client.delete(f"/jobs/{job['id']}/tags/for the wall").json()["tags"] == []
    assert client.delete(f"/images/{image}/favourite").status_code == 200
    assert listed(client, favourite=True, owner="marker") == []
    assert client.put("/images/nobody/favourite").status_code == 404
    assert client.put(f"/jobs/{job['id']}/tags/{'x' * 65}").json()["error"]["param"] == "tag"


def test_links_are_good_for_a_while_and_for_one_picture(client: httpx.Client) -> None:
    body = {"prompt": "linked", "response_format": "url", "n": 2}
    data = client.post(GENERATIONS, json=body).json()["data"]
    link, other = (urlsplit(one["url"]) for one in data)
    given = dict(parse_qsl(link.query))

    def fetch(path: str = link.path, **changed: str) -> int:
        return client.get(f"{path}?{urlencode({**given, **changed})}").status_code

    first = client.get(f"{link.path}?{link.query}")
    assert (first.status_code, first.headers["content-type"]) == (200, "image/png")
    assert fetch(other.path) == 404
    assert fetch(signature=given["signature"][:-2] + "AA") == 404
    assert fetch(expires=str(int(given["expires"]) + 1)) == 404
    time.sleep(max(0.0, int(given["expires"]) - time.time()) + 0.05)
    assert fetch() == 404


def test_a_job_can_be_drawn_again_exactly(client: httpx.Client) -> None:
    first = draw(client, "again", n=2, steps=3, seed=77)
    again = client.post(f"/jobs/{first['id']}/replay")
    assert again.status_code == 202
    second = wait(client, again.json()["id"])
    same = ("prompt", "seed", "n", "size", "sampler", "num_inference_steps", "guidance_scale")
    assert {name: first[name] for name in same} == {name: second[name] for name in same}
    for one, other in zip(first["images"], second["images"], strict=True):
        assert client.get(f"/images/{one}").content == client.get(f"/images/{other}").content
    assert client.post("/jobs/nobody/replay").status_code == 404


def wait(client: httpx.Client, job_id: str) -> dict[str, Any]:
    client.get(f"/jobs/{job_id}/events")
    shown: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    return shown


def test_forgetting_leaves_nothing(house: Gateway, client: httpx.Client) -> None:
    job = draw(client, "a secret xylophone", owner="shy", seed=4711)
    (image,) = job["images"]
    stored = list((house.log.parent / "images").glob("??/*"))
    assert client.delete(f"/jobs/{job['id']}", params={"forget": True}).status_code == 200
    assert client.get(f"/jobs/{job['id']}").status_code == 404
    assert client.get(f"/jobs/{job['id']}/events").status_code == 404
    assert client.get(f"/images/{image}").status_code == 404
    assert listed(client, q="xylophone") == []
    assert len(list((house.log.parent / "images").glob("??/*"))) == len(stored) - 1
    assert client.delete(f"/jobs/{job['id']}", params={"forget": True}).status_code == 404


def test_my_data_goes_and_that_of_others_stays(house: Gateway, client: httpx.Client) -> None:
    mine = {"X-OpenWebUI-User-Id": "leaver"}
    theirs = draw(client, "stays", owner="stayer")
    for number in range(3):
        draw(client, f"goes {number}", owner="leaver")
    going = client.post("/jobs", json={"prompt": "goes on", "steps": 900}, headers=mine).json()
    assert client.delete("/jobs", headers=mine).json()["error"]["param"] == "mine"
    answer = client.delete("/jobs", params={"mine": True}, headers=mine)
    assert answer.json() == {"forgotten": 4}
    assert listed(client, owner="leaver") == []
    assert client.get(f"/jobs/{going['id']}").status_code == 404
    assert listed(client, owner="stayer") == [theirs["id"]]
    database = (house.log.parent / "easel.db").read_bytes()
    assert b"goes 1" not in database


def test_one_picture_can_go_alone(client: httpx.Client) -> None:
    job = draw(client, "two", n=2, seed=99)
    one, two = job["images"]
    assert client.delete(f"/images/{one}").status_code == 200
    assert client.get(f"/images/{one}").status_code == 404
    assert client.get(f"/images/{two}").status_code == 200


def test_a_small_picture_is_its_own_thumbnail(client: httpx.Client) -> None:
    (image,) = draw(client, "small")["images"]
    whole, small = (client.get(f"/images/{image}{end}") for end in ("", "/thumbnail"))
    assert whole.content == small.content
    assert client.get("/images/nobody/thumbnail").status_code == 404


def test_statistics(client: httpx.Client) -> None:
    for _ in range(3):
        draw(client, "counted", owner="counted", size="128x64")
    report = client.get("/stats", params={"owner": "counted"}).json()
    assert report["statuses"] == {"succeeded": 3}
    assert report["success_rate"] == 1.0
    (kind,) = report["generation"]
    assert (kind["model"], kind["size"], kind["seconds"]["n"]) == ("fake", "128x64", 3)
    assert 0 < kind["seconds"]["min"] <= kind["seconds"]["p50"] <= kind["seconds"]["max"]
    (day,) = report["days"]
    assert (day["owner"], day["jobs"]) == ("counted", 3)
    for_people = client.get("/stats?owner=counted", headers={"accept": "text/html,*/*"})
    assert for_people.headers["content-type"].startswith("text/plain")
    assert re.search(r"^ ?fake +128x64 +3 +0\.\d\d s", for_people.text, re.MULTILINE)
    assert "3 succeeded; 100.0% succeeded" in for_people.text


# -- live ------------------------------------------------------------------------------------------


def test_a_socket_tells_the_same_as_the_stream(house: Gateway, client: httpx.Client) -> None:
    job = client.post("/jobs", json={"prompt": "watched", "steps": 10}).json()["id"]
    address = f"ws://127.0.0.1:{house.port}/jobs/{job}/ws"
    messages = messages_of(address)
    frames = client.get(f"/jobs/{job}/events").text.strip().split("\n\n")
    told = [frame.splitlines() for frame in frames if not frame.startswith(":")]
    assert [(f"id: {one['id']}", f"event: {one['event']}") for one in messages] == [
        (frame[0], frame[1]) for frame in told
    ]
    assert [one["data"] for one in messages] == [json.loads(frame[2][6:]) for frame in told]
    assert messages[-1]["event"] == "succeeded"
    assert messages_of(f"{address}?after=3") == messages[3:]


def messages_of(address: str) -> list[dict[str, Any]]:
    with connect(address) as socket:
        return [json.loads(message) for message in socket]


@pytest.mark.parametrize(
    ("end", "code"), [("/jobs/nobody/ws", 4404), ("/jobs/nobody/ws?after=x", 4400)]
)
def test_a_socket_says_why_it_closes(house: Gateway, end: str, code: int) -> None:
    address = f"ws://127.0.0.1:{house.port}{end}"
    with connect(address) as socket, pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


def test_the_feed_tells_of_all_my_jobs_and_of_nobody_elses(
    house: Gateway, client: httpx.Client
) -> None:
    mine = {"X-OpenWebUI-User-Id": "feeder"}
    first = client.post("/jobs", json={"prompt": "1", "steps": 60}, headers=mine).json()["id"]
    told: list[tuple[str, dict[str, Any]]] = []
    enough = threading.Event()

    def read() -> None:
        with house.client() as other, other.stream("GET", "/jobs/events", headers=mine) as answer:
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    told.append((name, json.loads(line[6:])))
                    if len([one for one, _ in told if one == "succeeded"]) == 2:
                        enough.set()
                        return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    deadline = time.monotonic() + 20
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    second = client.post("/jobs", json={"prompt": "2", "steps": 3}, headers=mine).json()["id"]
    draw(client, "not told", owner="someone")
    assert enough.wait(30)
    assert told[0][0] == "job"
    assert told[0][1]["id"] == first
    assert {data["job_id"] for name, data in told if name != "job"} == {first, second}
    for job in (first, second):
        numbers = [data["number"] for _, data in told if data.get("job_id") == job]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))


# -- when there is no room -------------------------------------------------------------------------


def test_below_the_low_water_mark_nothing_more_is_taken(tmp_path: Path) -> None:
    environment = {**fake_settings(), "EASEL_LOW_WATER": "100000TB"}
    with running_gateway(tmp_path, environment) as full, full.client() as client:
        refused = client.post(GENERATIONS, json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_full")
        assert client.get("/jobs").json()["jobs"] == []


def test_a_picture_that_cannot_be_stored_is_still_delivered(tmp_path: Path) -> None:
    with running_gateway(tmp_path, fake_settings()) as started, started.client() as client:
        draw(client, "stored")
        images = tmp_path / "images"
        images.rename(tmp_path / "away")
        images.write_text("in the way")  # no folder can be made here, not even by root
        answer = client.post(GENERATIONS, json={"prompt": "delivered"})
        drawn = base64.b64decode(answer.json()["data"][0]["b64_json"])
        job = client.get(f"/jobs/{answer.headers['x-easel-job']}").json()
        assert job["status"] == "succeeded"
        assert job["not_stored"] == job["images"]
        assert client.get(f"/images/{job['images'][0]}").content == drawn  # from memory, for now
        images.unlink()
        (tmp_path / "away").rename(images)
        assert draw(client, "stored again")["not_stored"] == []
