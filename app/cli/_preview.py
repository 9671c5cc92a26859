"""Unfinished pictures in a terminal, as far as it can show any."""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import ControlType, Segment
from rich.style import Style

from app.domain.errors import InvalidRequest

if TYPE_CHECKING:
    from app.engines.miniature import Miniature

Way = Literal["auto", "kitty", "iterm", "blocks", "none"]
Shown = Literal["kitty", "iterm", "blocks", "none"]

COUNT = 3
"""Previews of each picture."""

_COLUMNS, _ROWS = 40, 16
"""Cells that a preview takes at most. A cell is taken to be twice as high as wide."""

_CELL = 10, 20
"""Pixels that are sent for a cell to a terminal that shows pixels."""

_SPARE_ROWS = 6
"""Rows of the terminal that are left to everything else."""

_CHUNK = 4096
"""Bytes of base64 in one command, at most (kitty's graphics protocol)."""

_PLACEHOLDER = "\U0010eeee"
_NUMBERS = (
    "\u0305\u030d\u030e\u0310\u0312\u033d\u033e\u033f"
    "\u0346\u034a\u034b\u034c\u0350\u0351\u0352\u0357"
)
"""What says which cell of an image a placeholder is for: 0, 1, 2 … (kitty's graphics protocol)."""


def way_of(wanted: Way, console: Console, environment: Mapping[str, str] = os.environ) -> Shown:
    """How this terminal shows pictures. Nothing asks the terminal itself: answers come late or never,
    and what is typed meanwhile would be lost."""
    if wanted == "none" or not console.is_terminal or console.is_dumb_terminal:
        return "none"
    if wanted != "auto":
        return wanted
    if console.no_color:
        return "none"
    if not environment.get("TMUX") and not environment.get(
        "STY"
    ):  # which keep pictures to themselves
        term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
        if environment.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty"):
            return "kitty"
        if program in ("iTerm.app", "WezTerm"):
            return "iterm"
    return "blocks" if environment.get("COLORTERM") in ("truecolor", "24bit") else "none"


class Screen:
    """Where previews are shown. `picture` is what is to be seen beside the bars, if anything is."""

    def __init__(self, way: Shown, console: Console) -> None:
        self._way = way
        self._console = console
        self._id = 16 + os.getpid() % 240
        """Of the image in kitty, and a colour of the usual palette: so placeholders name it."""
        self._sent = False
        self.picture: Blocks | Placeholders | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is a place for previews."""
        return self._way != "none" and min(self._room()) > 0

    def show(self, data: bytes) -> None:
        """Show a picture in place of the one before. One that cannot be read is left out."""
        from app.engines.miniature import miniature  # Pillow takes its time

        columns, rows = self._room()
        if not self.wanted:
            return
        across, down = (1, 2) if self._way == "blocks" else _CELL
        try:
            small = miniature(data, columns * across, rows * down)
        except InvalidRequest:
            return
        cells = -(-small.width // across), -(-small.height // down)
        match self._way:
            case "blocks":
                self.picture = Blocks(small)
            case "kitty":
                self._send("".join(_kitty(small, self._id, *cells)))
                self.picture = Placeholders(self._id, *cells)
                self._sent = True
            case "iterm":
                self._send(_iterm(small.png, *cells), end="\n")

    def clear(self) -> None:
        """Leave nothing in the terminal that is not text."""
        self.picture = None
        if self._sent:
            self._send(f"\x1b_Ga=d,d=I,i={self._id},q=2\x1b\\")
            self._sent = False

    def _room(self) -> tuple[int, int]:
        size = self._console.size
        return min(_COLUMNS, size.width), min(_ROWS, size.height - _SPARE_ROWS)

    def _send(self, command: str, end: str = "") -> None:
        self._console.print(_Command(command), end=end)


class _Command:
    """What the terminal does, and does not show as text."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self._command, None, [(ControlType.BELL,)])  # any kind will do


class Blocks:
    """Two pixels in each cell: the upper half of it, and what is behind."""

    def __init__(self, small: Miniature) -> None:
        self._small = small

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = self._small.width, self._small.height
        for row in range(0, height, 2):
            for column in range(min(width, options.max_width)):
                upper = self._colour(column, row)
                lower = self._colour(column, row + 1) if row + 1 < height else None
                yield Segment("▀", Style(color=upper, bgcolor=lower))
            yield Segment.line()

    def _colour(self, column: int, row: int) -> Color:
        at = (row * self._small.width + column) * 3
        return Color.from_rgb(*self._small.rgb[at : at + 3])


class Placeholders:
    """Cells in which kitty shows an image that it was sent: text, that scrolls and goes like text."""

    def __init__(self, id: int, columns: int, rows: int) -> None:
        self._style = Style(color=Color.from_ansi(id))
        self._columns, self._rows = columns, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for row in range(self._rows):
            first = _PLACEHOLDER + _NUMBERS[row] + _NUMBERS[0]
            rest = _PLACEHOLDER * (min(self._columns, options.max_width) - 1)
            yield Segment(first + rest, self._style)
            yield Segment.line()


def _kitty(small: Miniature, id: int, columns: int, rows: int) -> Iterator[str]:
    """Commands that send an image and name the cells that it is for; nothing is answered (`q=2`)."""
    data = base64.b64encode(zlib.compress(small.rgb)).decode("ascii")
    chunks = [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)]
    keys = f"a=T,U=1,i={id},c={columns},r={rows},f=24,s={small.width},v={small.height},o=z,q=2,"
    for number, chunk in enumerate(chunks, 1):
        more = int(number < len(chunks))
        yield f"\x1b_G{keys if number == 1 else 'q=2,'}m={more};{chunk}\x1b\\"


def _iterm(png: bytes, columns: int, rows: int) -> str:
    """The command that shows a file in so many cells."""
    data = base64.b64encode(png).decode("ascii")
    return f"\x1b]1337;File=inline=1;size={len(png)};width={columns};height={rows}:{data}\x07"
