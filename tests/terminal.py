"""A terminal with a person before it: what he sees, and Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyte

COLUMNS, ROWS = 100, 30
_EASEL = (sys.executable, "-m", "app")


class Terminal:
    """A command in a terminal of its own. `raw` is every byte that it wrote there."""

    def __init__(self, words: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.raw = b""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            # What runs in the background ignores Ctrl-C, and so would all that it starts.
            ["setsid", "--ctty", "env", "--default-signal=INT", *_EASEL, *words],
            env={**os.environ, "TERM": "xterm-256color", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = os.read(self._ours, 65_536)
            except OSError:  # EIO: nobody has the other end any more
                return
            if not data:
                return
            with self._lock:
                self.raw += data
                # Commands of this kind show nothing; pyte does not know them, and would write them out.
                *whole, rest = re.split(rb"(?=\x1b_)", rest + data)
                if rest.startswith(b"\x1b_") and b"\x1b\\" not in rest:
                    data = b"".join(whole)
                else:
                    data, rest = b"".join([*whole, rest]), b""
                self._stream.feed(re.sub(rb"\x1b_[^\x1b]*\x1b\\", b"", data))

    @property
    def text(self) -> str:
        """What is on the screen."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display).strip()

    def colours(self, mark: str) -> set[tuple[str, str]]:
        """The colours of all cells that hold this mark, and behind them, as hexadecimal digits."""
        with self._lock:
            cells = [
                self._screen.buffer[row][column] for row in range(ROWS) for column in range(COLUMNS)
            ]
            return {(cell.fg, cell.bg) for cell in cells if cell.data == mark}

    @property
    def cursor_hidden(self) -> bool:
        with self._lock:
            hidden: bool = self._screen.cursor.hidden
            return hidden

    def wait_for(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.text}"
            time.sleep(0.02)

    def press_ctrl_c(self) -> None:
        os.write(self._ours, b"\x03")

    def ended(self, seconds: float = 30) -> int:
        """The exit code."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self._reader.join(5)
        os.close(self._ours)


@contextmanager
def terminal(*words: str, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(words, environment)
    try:
        yield opened
    finally:
        opened.close()
