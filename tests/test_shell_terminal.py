"""What a person sees in a terminal: bars, previews, the end of a job by Ctrl-C; and never a stranger's
escape sequences."""

from __future__ import annotations

import base64
import io
import re
import time
import zlib
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from app.cli._preview import Way, way_of
from app.domain.errors import InvalidRequest
from app.engines.miniature import miniature
from tests.gateway import Gateway
from tests.pictures import pixels
from tests.shell_house import Easel, at_home, easel, house, submitted
from tests.terminal import Terminal, terminal

__all__ = ["at_home", "easel", "house"]  # fixtures

TRUE = {"COLORTERM": "truecolor"}
SLOW = ("--model", "lab/slow", "--steps", "40")


def drawing(house: Gateway, *words: str, **environment: str) -> AbstractContextManager[Terminal]:
    return terminal("generate", "a fox", *SLOW, *words, "--server", house.url, **environment)


def newest(house: Gateway) -> dict[str, str]:
    job: dict[str, str] = httpx.get(f"{house.url}/jobs", params={"limit": 1}).json()["jobs"][0]
    return job


def test_a_bar_and_a_preview_are_seen_and_then_the_file(at_home: Gateway) -> None:
    with drawing(at_home, **TRUE) as seen:
        seen.wait_for("Generating step")
        seen.wait_for("s left")
        step = re.search(r"Generating step (\d+)/40 ━.* (\d+)% [0-9.]+ s left", seen.text)
        assert step, seen.text
        seen.wait_for("\n".join(["▀" * 32] * 16))
        colours = seen.colours("▀")
        assert seen.cursor_hidden
        assert seen.ended() == 0
        assert re.fullmatch(r"out\.png  seed \d+", seen.text)
        assert not seen.cursor_hidden
    red, green, blue = pixels(Path("out.png").read_bytes())[0, 0]
    assert colours == {(f"{red:02x}{green:02x}{blue:02x}",) * 2}


def test_kitty_is_sent_the_picture_and_the_cells_that_hold_it(at_home: Gateway) -> None:
    with drawing(at_home, KITTY_WINDOW_ID="1") as seen:
        seen.wait_for("\U0010eeee")
        assert seen.ended() == 0
        raw = seen.raw
    assert seen.text.startswith("out.png")
    first, *_ = commands = re.findall(rb"\x1b_G([^;]*);?([^\x1b]*)\x1b\\", raw)
    keys = dict(part.split(b"=") for part in first[0].split(b","))
    assert (keys[b"a"], keys[b"U"], keys[b"q"]) == (b"T", b"1", b"2")
    assert (keys[b"c"], keys[b"r"]) == (b"32", b"16")
    whole = b""
    for about, data in commands:
        whole += data
        if b"m=0" in about:
            break
    rgb = zlib.decompress(base64.b64decode(whole))
    shape = int(keys[b"v"]), int(keys[b"s"]), 3
    colour = pixels(Path("out.png").read_bytes())[0, 0]
    assert (np.frombuffer(rgb, np.uint8).reshape(shape) == colour).all()
    cells = re.findall(rf"\x1b\[38;5;{keys[b'i'].decode()}m(\U0010eeee[^\x1b]*)", raw.decode())
    assert cells[0].startswith("\U0010eeee\u0305\u0305\U0010eeee")
    assert cells[1].startswith("\U0010eeee\u030d\u0305")
    assert commands[-1][0] == b"a=d,d=I,i=" + keys[b"i"] + b",q=2"  # nothing is left there


def test_iterm_is_sent_a_file(at_home: Gateway) -> None:
    with drawing(at_home, "--preview", "iterm") as seen:
        assert seen.ended() == 0
        raw = seen.raw
    files = re.findall(
        rb"\x1b\]1337;File=inline=1;size=(\d+);width=32;height=16:([^\x07]+)\x07", raw
    )
    assert len(files) == 3
    png = base64.b64decode(files[0][1])
    assert len(png) == int(files[0][0])
    colour = pixels(Path("out.png").read_bytes())[0, 0]
    assert (pixels(png) == colour).all()


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"KITTY_WINDOW_ID": "3", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm", "COLORTERM": "truecolor"}, "iterm"),
        ({"TERM": "xterm-kitty", "TMUX": "/x", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/x"}, "none"),
        ({"TERM": "xterm-256color"}, "none"),
    ],
)
def test_what_a_terminal_can_show_is_told_by_its_environment(
    environment: dict[str, str], way: Way
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    assert way_of("auto", console, environment) == way
    assert way_of("none", console, environment) == "none"
    assert way_of("blocks", console, {}) == "blocks"
    piped = Console(file=io.StringIO(), _environ={})
    assert way_of("kitty", piped, environment) == "none"


def test_no_colour_means_no_preview() -> None:
    plain = Console(
        file=io.StringIO(), force_terminal=True, _environ={"NO_COLOR": "1", "TERM": "x"}
    )
    assert way_of("auto", plain, TRUE) == "none"


def test_a_pipe_gets_neither_bars_nor_previews(easel: Easel, house: Gateway) -> None:
    asked = ("generate", "x", "--steps", "4", "--preview", "blocks", "--server", house.url)
    done = easel(*asked, **TRUE)
    assert done.code == 0
    assert re.fullmatch(r"out\.png  seed \d+\n", done.out)
    assert done.err == ""
    events = httpx.get(f"{house.url}/jobs/{newest(house)['id']}/events").text
    assert '"preview":"' not in events  # nothing was drawn that nobody sees


def test_ctrl_c_cancels_the_job_there_and_says_so(at_home: Gateway) -> None:
    with terminal(
        *("generate", "x", "--model", "lab/slow", "--steps", "900", "--server", at_home.url), **TRUE
    ) as seen:
        seen.wait_for("Generating step")
        job = newest(at_home)
        assert job["status"] == "running"
        seen.press_ctrl_c()
        assert seen.ended() == 130
        assert seen.text.replace("\n", " ").endswith(f"stopped; job {job['id']} was cancelled")
        assert not seen.cursor_hidden
    assert newest(at_home)["status"] == "cancelled"


def test_ctrl_c_ends_the_watching_and_not_the_job(at_home: Gateway) -> None:
    job_id = submitted(at_home, model="lab/slow", steps=900)
    settings = {"EASEL_DATA_DIR": str(at_home.log.parent), "EASEL_PORT": str(at_home.port)}
    with terminal("jobs", "watch", **settings) as seen:
        seen.wait_for(f"{job_id}  lab/slow")
        seen.wait_for("Generating step")
        seen.press_ctrl_c()
        assert seen.ended() == 130
        assert seen.text.endswith("stopped; the jobs go on")
    assert newest(at_home)["status"] == "running"
    httpx.delete(f"{at_home.url}/jobs/{job_id}")


def jobs_of(house: Gateway, words: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = httpx.get(f"{house.url}/jobs", params={"q": words}).json()["jobs"]
    return found


def test_a_measurement_that_is_stopped_leaves_nothing_behind(at_home: Gateway) -> None:
    wish = ("-n", "9", "-c", "4", *SLOW[:2], "--steps", "900", "--prompt", "Tachometer")
    with terminal("bench", "speed", *wish, "--server", at_home.url) as seen:
        seen.wait_for("0/9")
        while len(found := jobs_of(at_home, "Tachometer")) < 4:
            time.sleep(0.05)
        seen.press_ctrl_c()
        assert seen.ended() == 130
        assert seen.text.endswith("stopped; what was under way was cancelled")
    assert {job["status"] for job in found} <= {"queued", "running"}
    assert jobs_of(at_home, "Tachometer") == []


def test_a_strangers_words_do_not_steer_the_terminal(at_home: Gateway) -> None:
    job_id = submitted(at_home, prompt="\x1b]0;owned\x07\x1b[2J[red]hen[/red]\u202e\x9b31m")
    with terminal("jobs", "list", "--server", at_home.url, "--limit", "1", COLUMNS="150") as seen:
        assert seen.ended() == 0
        raw, text = seen.raw, seen.text
    assert job_id in text
    assert r"\x1b]0;owned\x07\x1b[2J[red]hen[/red]\u202e\x9b31m" in text.replace("\n", "")
    assert b"\x1b]" not in raw
    assert b"\x1b[2J" not in raw


# -- in small --------------------------------------------------------------------------------------


def test_a_picture_in_small_keeps_its_shape_and_its_colours() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[:, 100:] = (250, 128, 3)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    small = miniature(file.getvalue(), 40, 32)
    assert (small.width, small.height) == (40, 20)
    rows = np.frombuffer(small.rgb, np.uint8).reshape(20, 40, 3)
    assert rows[10, 5].tolist() == [0, 0, 0]
    assert rows[10, 35].tolist() == [250, 128, 3]
    assert (pixels(small.png) == rows).all()


def test_what_is_no_picture_is_refused_before_it_is_decoded() -> None:
    for data in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(40)):
        with pytest.raises(InvalidRequest):
            miniature(data, 40, 32)
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")  # a few kilobytes that would become many
    began = time.monotonic()
    with pytest.raises(InvalidRequest):
        miniature(file.getvalue(), 40, 32)
    assert time.monotonic() - began < 1
