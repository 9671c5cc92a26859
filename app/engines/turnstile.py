"""Who uses a device next, decided anew at every step.

One thread does all the device's work, one piece after the other; the runs' own threads bring it and
wait. So work is never torn between threads that fight for the same cores, whoever is most urgent goes
first at the next step and not at the next job, and pieces of one kind that wait together are done
together.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from app.engines.base import Sharing

T = TypeVar("T")

Together = Callable[[Sequence[Any]], Sequence[Any]]
"""Does several payloads of one kind at once: a result, or an exception, for each of them."""

_PATIENCE = 0.2, 0.01, 0.1
"""How long one waits for a run that is between two of its steps: this share of the last piece of
work, but at least and at most so many seconds. A run's own part of a step takes a millisecond."""

_CANCEL_SECONDS = 0.05
"""How often a waiting run looks whether it was called off."""


class _Piece:
    """One piece of work and its outcome."""

    def __init__(self, rider: Rider, kind: Hashable, payload: Any, together: Together) -> None:
        self.rider, self.kind, self.payload, self.together = rider, kind, payload, together
        self.done = threading.Event()
        self.result: Any = None
        self.came = time.monotonic()
        self.began = 0.0
        self.shared_by = 1


class Rider:
    """One picture's standing at the turnstile, used by the one thread that draws it.

    `batch` is how many pictures shared the last shared piece; `waited` the seconds that pieces stood
    behind others' work since it was last set to 0. `overlap` is whether what is done alone is done in
    this thread: at first what the turnstile says.
    """

    def __init__(
        self, turnstile: Turnstile, sharing: Sharing, check: Callable[[], None] | None
    ) -> None:
        self.sharing = sharing
        self.batch = 1
        self.waited = 0.0
        self.kind: Hashable = None
        self.overlap = turnstile.overlap
        self.returning = True  # with its prompt, before its steps
        self.ending = False
        self.thread = threading.current_thread()
        self._turnstile = turnstile
        self._check = check

    def do(self, work: Callable[[], T]) -> T:
        """Have `work` done alone, and return or raise what it does."""
        if self.overlap:
            return work()

        def alone(payloads: Sequence[Callable[[], T]]) -> list[T | BaseException]:
            return [attempt(payload) for payload in payloads]

        result: T = self._pass(None, work, alone)
        return result

    def share(self, kind: Hashable, payload: Any, together: Together) -> Any:
        """Have `payload` done, with those of other riders whose `kind` is equal and whose `sharing`
        allows it. Its result is returned, or raised if it is an exception.
        """
        return self._pass(kind, payload, together)

    def step_aside(self) -> None:
        """No shared piece will follow soon: nobody needs to wait for one."""
        self._turnstile.expect(self, returning=False)

    def last_shared(self) -> None:
        """What follows is done alone and is the end: only those of higher rank need to wait for it."""
        self.ending = True
        self._turnstile.expect(self, returning=True, alone=True)

    def _pass(self, kind: Hashable, payload: Any, together: Together) -> Any:
        piece = _Piece(self, kind, payload, together)
        self._turnstile.enter(piece)
        while not piece.done.wait(_CANCEL_SECONDS):
            if self._check is not None:
                try:
                    self._check()
                except BaseException:
                    if self._turnstile.withdraw(piece):
                        raise
                    piece.done.wait()  # it is being done: its tensors are in use
                    raise
        self.waited += piece.began - piece.came
        if kind is not None:
            self.batch = piece.shared_by
        if isinstance(piece.result, BaseException):
            raise piece.result
        return piece.result


class Turnstile:
    """The queue of pieces in front of one device, and the thread that does them.

    A piece that has waited `starvation` seconds goes first whatever its rank is. With `overlap`, work
    that is done alone runs in the caller's thread, beside the shared pieces: for devices with queues
    of their own. The device's thread calls `begin` before its first work.
    """

    def __init__(
        self,
        *,
        starvation: float = 10.0,
        overlap: bool = False,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.overlap = overlap
        self._starvation = starvation
        self._begin = begin
        self._pending: list[_Piece] = []
        self._riders: set[Rider] = set()
        self._changed = threading.Condition()
        self._last_seconds = 0.0
        self._thread: threading.Thread | None = None
        self._closed = self._ended = False

    @contextmanager
    def rider(self, sharing: Sharing, check: Callable[[], None] | None = None) -> Iterator[Rider]:
        """A standing for one picture. `check` raises when its run is to stop."""
        rider = Rider(self, sharing, check)
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="device", daemon=True)
                self._thread.start()
            self._riders.add(rider)
        try:
            yield rider
        finally:
            with self._changed:
                self._riders.discard(rider)
                self._changed.notify()

    def close(self) -> None:
        """Let the thread end once nothing waits any more; who comes later gets a RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    # -- the runs' side ----------------------------------------------------------------------------

    def enter(self, piece: _Piece) -> None:
        with self._changed:
            if self._ended:
                raise RuntimeError("This device takes no more work.")
            piece.rider.returning = False
            piece.rider.kind = piece.kind
            self._pending.append(piece)
            self._changed.notify()

    def withdraw(self, piece: _Piece) -> bool:
        """Take a piece back; False if it is too late."""
        with self._changed:
            if piece in self._pending:
                self._pending.remove(piece)
                return True
            return False

    def expect(self, rider: Rider, *, returning: bool, alone: bool = False) -> None:
        with self._changed:
            rider.returning = returning
            if alone:
                rider.kind = None
            self._changed.notify()

    # -- the device's side -------------------------------------------------------------------------

    def _work(self) -> None:
        self._begin()
        while (pieces := self._next()) is not None:
            began = time.monotonic()
            for piece in pieces:
                piece.began, piece.shared_by = began, len(pieces)
            try:
                results = pieces[0].together([piece.payload for piece in pieces])
                if len(results) != len(pieces):
                    raise ValueError(f"{len(results)} results for {len(pieces)} pieces")
            except BaseException as error:  # whatever it is, it belongs to those who wait
                results = [error] * len(pieces)
            with self._changed:
                self._last_seconds = time.monotonic() - began
                for piece, result in zip(pieces, results, strict=True):
                    piece.result = result
                    # It will be back at once, unless this was its end or went wrong.
                    failed = isinstance(result, BaseException)
                    piece.rider.returning = not piece.rider.ending and not failed
            for piece in pieces:
                piece.done.set()
            del pieces, results, piece, result  # nothing is kept alive while waiting

    def _next(self) -> list[_Piece] | None:
        """The pieces to do now, together; None when it is time to end."""
        share, least, most = _PATIENCE
        patience = min(max(share * self._last_seconds, least), most)
        with self._changed:
            deadline = time.monotonic() + patience
            while True:
                if not self._pending:
                    if self._closed:
                        self._ended = True
                        return None
                    self._changed.wait()
                    deadline = time.monotonic() + patience
                    continue
                chosen = self._choose()
                awaited = self._awaited(chosen)
                left = deadline - time.monotonic()
                if awaited and left > 0:
                    self._changed.wait(left)
                    continue
                for rider in awaited:  # it does something else; to wait once is enough
                    rider.returning = False
                for piece in chosen:
                    self._pending.remove(piece)
                return chosen

    def _choose(self) -> list[_Piece]:
        now = time.monotonic()

        def order(piece: _Piece) -> tuple[bool, tuple[int, bool, float], float]:
            fresh = now - piece.came < self._starvation
            return fresh, self._place(piece.rider, piece.kind), piece.came

        waiting = sorted(self._pending, key=order)
        first = waiting[0]
        if first.kind is None:
            return [first]
        chosen, most = [first], first.rider.sharing.batch
        for piece in waiting[1:]:
            room = min(most, piece.rider.sharing.batch)
            if len(chosen) < room and self._alike(first, piece.rider):
                chosen.append(piece)
                most = room
        return chosen

    @staticmethod
    def _place(rider: Rider, kind: Hashable) -> tuple[int, bool, float]:
        """Where in the order the rider's next piece of this kind is: the lower, the sooner.

        Within a class, what is done alone and leads up to shared steps goes before them. If it had to
        wait until those of lower rank have left, these would never have company.
        """
        level, due = rider.sharing.rank
        return level, kind is not None or rider.sharing.batch == 1, due

    @staticmethod
    def _alike(first: _Piece, rider: Rider) -> bool:
        """Whether the rider's shared pieces go with this one. Classes never mix: a larger batch takes
        longer, and who is urgent does not pay for who is not."""
        same_class = first.rider.sharing.rank[0] == rider.sharing.rank[0]
        return first.kind is not None and rider.kind == first.kind and same_class

    def _awaited(self, chosen: list[_Piece]) -> list[Rider]:
        """Riders between two steps that would go before these pieces, or with them."""
        first = chosen[0]
        most = min(piece.rider.sharing.batch for piece in chosen)
        place = self._place(first.rider, first.kind)
        return [
            rider
            for rider in self._riders
            if rider.returning
            and rider.thread.is_alive()
            and (
                (rider.kind is not None and self._place(rider, rider.kind) < place)
                or (not rider.overlap and rider.sharing.rank < first.rider.sharing.rank)
                or (len(chosen) < min(most, rider.sharing.batch) and self._alike(first, rider))
            )
        ]


def attempt(work: Callable[[], T]) -> T | BaseException:
    """What `work` returns, or the exception that it raised, which holds on to none of its tensors."""
    try:
        return work()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        return error
