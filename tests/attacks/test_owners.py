"""What belongs to one is not there for another: at every route."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.attacks.conftest import CANARY, House, named


@pytest.fixture(scope="module")
def anns(keyed: House) -> dict[str, Any]:
    """A job of ann's that has ended, and its picture."""
    with keyed.client("ann") as client:
        answer = client.post("/generate", json={"prompt": f"{CANARY} of ann", "steps": 2}).json()
        return {"job": answer["job_id"], "image": answer["images"][0]["id"]}


READS = {
    "the job": ("GET", "/jobs/{job}"),
    "its events": ("GET", "/jobs/{job}/events"),
    "drawing it again": ("POST", "/jobs/{job}/replay"),
    "cancelling it": ("DELETE", "/jobs/{job}"),
    "forgetting it": ("DELETE", "/jobs/{job}?forget=true"),
    "a tag on it": ("PUT", "/jobs/{job}/tags/mine"),
    "its tag away": ("DELETE", "/jobs/{job}/tags/mine"),
    "its picture": ("GET", "/images/{image}"),
    "its thumbnail": ("GET", "/images/{image}/thumbnail"),
    "its picture away": ("DELETE", "/images/{image}"),
    "its picture as favourite": ("PUT", "/images/{image}/favourite"),
    "its picture as none": ("DELETE", "/images/{image}/favourite"),
    "its picture with no signature": ("GET", "/images/{image}?signature="),
    "its picture with a signature of ours": (
        "GET",
        "/images/{image}?expires=99999999999&signature=AA",
    ),
    "its picture with half a link": ("GET", "/images/{image}?expires=99999999999"),
}


@pytest.mark.parametrize(("method", "path"), **named(READS))
@pytest.mark.parametrize("who", ["bob", "a user behind bob", "a user behind ann"])
def test_what_is_anns_is_not_there_for_others(
    keyed: House, anns: dict[str, str], who: str, method: str, path: str
) -> None:
    key = who.rpartition(" ")[2]
    headers = {} if key == who else {"x-openwebui-user-id": "ann"}
    with keyed.client(key, **headers) as client:
        assert client.request(method, path.format(**anns)).status_code == 404
    with keyed.client("ann") as client:
        shown = client.get(f"/jobs/{anns['job']}").json()
        assert (shown["status"], shown["tags"], shown["favourites"]) == ("succeeded", [], [])
        assert client.get(f"/images/{anns['image']}").status_code == 200


def test_lists_hold_only_ones_own(keyed: House, anns: dict[str, str]) -> None:
    with keyed.client("bob") as client:
        client.post("/generate", json={"prompt": "of bob"})
        for query in ("", "?owner=ann", "?q=ann", f"?q={CANARY}", "?owner=ann%25", "?owner="):
            jobs = client.get(f"/jobs{query}").json()["jobs"]
            assert {job["owner"] for job in jobs} <= {"bob"}
            assert anns["job"] not in {job["id"] for job in jobs}
        days = client.get("/stats", params={"owner": "ann"}).json()["days"]
        assert {day["owner"] for day in days} <= {"bob"}
        assert client.get("/stats").json()["days"][0]["owner"] == "bob"


def test_an_admin_sees_all_and_may_take_away(keyed: House) -> None:
    with keyed.client("ann") as client:
        job = client.post("/generate", json={"prompt": "x"}).json()
    with keyed.client("chief") as client:
        assert client.get(f"/jobs/{job['job_id']}").status_code == 200
        assert client.get(f"/images/{job['images'][0]['id']}").status_code == 200
        owners = {one["owner"] for one in client.get("/jobs?limit=1000").json()["jobs"]}
        assert {"ann"} <= owners
        gone = client.delete(f"/jobs/{job['job_id']}", params={"forget": True})
        assert gone.status_code == 200
    with keyed.client("chief", **{"x-openwebui-user-id": "somebody"}) as client:
        assert client.get("/jobs").json()["jobs"] == []


def test_forgetting_mine_leaves_what_is_anothers(keyed: House, anns: dict[str, str]) -> None:
    with keyed.client("bob") as client:
        client.delete("/jobs", params={"mine": True, "owner": "ann"})
    with keyed.client("ann") as client:
        assert client.get(f"/jobs/{anns['job']}").status_code == 200


def test_a_socket_tells_nothing_of_anothers_job(keyed: House, anns: dict[str, str]) -> None:
    address = f"ws://127.0.0.1:{keyed.gateway.port}/jobs/{anns['job']}/ws"
    login = {"Authorization": f"Bearer {keyed.keys['bob']}"}
    with (
        connect(address, additional_headers=login) as socket,
        pytest.raises(ConnectionClosed) as end,
    ):
        socket.recv(timeout=10)
    assert end.value.rcvd is not None
    assert end.value.rcvd.code == 4404


def test_a_key_of_another_is_not_answered_with_his_picture(keyed: House) -> None:
    """Equal requests, equal Idempotency-Key, and the mark of a retry."""
    body = {"prompt": f"{CANARY} twice", "seed": 5}
    headers = {"idempotency-key": "the-same", "x-stainless-retry-count": "1"}
    jobs = set()
    for who in ("ann", "bob"):
        with keyed.client(who, **headers) as client:
            answer = client.post("/v1/images/generations", json=body)
            assert "idempotent-replayed" not in answer.headers
            jobs.add(answer.headers["x-easel-job"])
    assert len(jobs) == 2


def test_progress_and_interrupt_see_only_ones_own(keyed: House) -> None:
    done: list[int] = []

    def draw() -> None:
        with keyed.client("ann") as client:
            body = {
                "prompt": CANARY,
                "steps": 400,
                "override_settings": {"sd_model_checkpoint": "lab/slow"},
            }
            done.append(client.post("/sdapi/v1/txt2img", json=body).status_code)

    drawing = threading.Thread(target=draw)
    drawing.start()
    with keyed.client("ann") as ann, keyed.client("bob") as bob:
        for _ in range(200):
            if ann.get("/sdapi/v1/progress").json()["state"]["job"]:
                break
            time.sleep(0.02)
        else:
            pytest.fail("ann does not see her own job")
        assert bob.get("/sdapi/v1/progress").json()["state"]["job"] == ""
        bob.post("/sdapi/v1/interrupt")
        assert ann.get("/sdapi/v1/progress").json()["state"]["job"]
        ann.post("/sdapi/v1/interrupt")
    drawing.join(30)
    assert done == [422]


@pytest.mark.parametrize("path", ["/jobs/events", "/v1/progress-stream"])
def test_live_news_are_of_ones_own(keyed: House, path: str) -> None:
    told: list[str] = []
    ready, enough = threading.Event(), threading.Event()

    def read() -> None:
        with keyed.client("bob") as client, client.stream("GET", path) as answer:
            for line in answer.iter_lines():
                ready.set()
                if line.startswith("data: "):
                    told.append(json.loads(line[6:]).get("job_id", ""))
                    if told[-1] == mine:
                        enough.set()
                        return

    mine = ""
    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    assert ready.wait(10)
    with keyed.client("ann") as client:
        anns = client.post("/generate", json={"prompt": "x"}).json()["job_id"]
    with keyed.client("bob") as client:
        job = client.post("/jobs", json={"prompt": "x", "steps": 100}).json()
        mine = job["id"]
    assert enough.wait(10)
    assert anns not in told


def test_a_link_is_for_whoever_has_it_and_for_one_picture(keyed: House) -> None:
    with keyed.client("ann") as client:
        body = {"prompt": "x", "response_format": "url", "n": 2}
        one, other = (
            picture["url"]
            for picture in client.post("/v1/images/generations", json=body).json()["data"]
        )
    with keyed.client() as nobody:
        assert nobody.get(one).status_code == 200
        path = other.partition("?")[0]
        assert nobody.get(f"{path}?{one.partition('?')[2]}").status_code == 404
        assert nobody.get(path).status_code == 401
