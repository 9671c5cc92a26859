"""After all attacks: no prompt, no key and no picture is in what the server wrote down."""

from __future__ import annotations

import json

from tests.attacks.conftest import CANARY, LEAKS, House


def test_the_log_holds_no_prompt_and_no_key(keyed: House) -> None:
    with keyed.client("ann") as client:
        client.post("/generate", json={"prompt": f"{CANARY} once more"})
        client.get("/jobs", params={"q": CANARY})
        client.get(f"/jobs/{CANARY}")
        client.get(f"/nowhere/{CANARY}?{CANARY}={keyed.keys['ann']}")
        client.post(f"/{CANARY}", headers={"user-agent": CANARY, "referer": f"http://{CANARY}/"})
    log = keyed.gateway.log.read_text()
    assert log.count('"event": "request"') > 1
    assert CANARY not in log
    for secret in keyed.secrets:
        assert secret not in log
    assert "iVBORw0" not in log
    requests = [line for line in map(json.loads, log.splitlines()) if line["event"] == "request"]
    assert {"method", "route", "status", "seconds", "request_id"} <= requests[-1].keys()
    assert not any(LEAKS.search(json.dumps(line)) for line in requests)


def test_the_metrics_hold_no_prompt_and_no_key(keyed: House) -> None:
    with keyed.client() as nobody:
        assert nobody.get("/metrics").status_code == 401
    with keyed.client("chief") as client:
        told = client.get("/metrics")
    assert (told.status_code, "easel_" in told.text) == (200, True)
    assert CANARY not in told.text
    assert not any(secret in told.text for secret in keyed.secrets)


def test_the_store_holds_no_key(keyed: House) -> None:
    folder = keyed.gateway.log.parent
    for file in folder.glob("easel.db*"):
        data = file.read_bytes()
        for secret in keyed.secrets:
            assert secret.encode() not in data


def test_the_key_of_the_links_is_for_its_owners_eyes(keyed: House) -> None:
    mode = (keyed.gateway.log.parent / "links.key").stat().st_mode
    assert mode & 0o077 == 0
