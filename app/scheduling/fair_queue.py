"""Who of the waiting jobs is next.

The order, in five lines, each of which decides only where those above it are equal:
1. a job whose worker died goes first;
2. interactive jobs go before background ones, which count as interactive after `starvation_seconds`;
3. jobs whose model is held go before others, which count as held after a while (`hold`);
4. the owner who has had the least of the devices, by weight and in coarse steps, goes first;
5. the job that is due first: submission plus eight times its length, or its deadline.

So a short job passes long ones, but none for longer than its own length makes bearable; and an owner
who sends a hundred jobs waits behind the one who sends a single one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import msgspec

from app.scheduling.admission import BACKGROUND, INTERACTIVE

_STRETCH = 8.0
"""How many times its own length a job may take, the wait included, before it is overdue."""

_COARSE = 2.0
"""Owners count as equal while they are less than this many usual jobs apart."""

_LOADS = 8.0
"""A job waits at most so many times as long as its model takes to be brought for those whose model is
there, and models change places no sooner than that: a ninth of the time at most goes into changes."""

_MOST_OWNERS = 200
"""Whose virtual times are kept while they have nothing waiting."""


class Ticket(msgspec.Struct, eq=False, kw_only=True):
    """A waiting job. Times are seconds of one monotonic clock; `seconds` is its expected work, `load`
    what it takes to bring its model where it is not held."""

    id: str
    owner: str
    model: str
    since: float
    seconds: float
    load: float = math.inf
    background: bool = False
    deadline: float | None = None
    again: bool = False

    @property
    def due(self) -> float:
        stretched = self.since + _STRETCH * self.seconds
        return stretched if self.deadline is None else min(stretched, self.deadline)


class FairQueue:
    """Waiting jobs, and what every owner has had so far. No clock of its own.

    An owner's virtual time is the seconds of work that were begun for them, divided by their weight.
    Who comes back after a pause starts where those who wait are now: a pause earns nothing.
    """

    def __init__(
        self, weights: Mapping[str, float], *, aging_seconds: float, starvation_seconds: float
    ) -> None:
        self._weights = weights
        self._aging = aging_seconds
        self._starvation = starvation_seconds
        self._tickets: dict[str, Ticket] = {}
        self._spent: dict[str, float] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, ticket: Ticket) -> None:
        if all(other.owner != ticket.owner for other in self._tickets.values()):
            self._spent[ticket.owner] = max(self._spent.get(ticket.owner, 0.0), self._now)
        self._tickets[ticket.id] = ticket

    def remove(self, ticket_id: str) -> None:
        """The job does not wait any more; nothing if it never did."""
        self._tickets.pop(ticket_id, None)

    def take(self, ticket: Ticket) -> None:
        """The job starts: its owner is charged what it is expected to cost."""
        del self._tickets[ticket.id]
        spent = self._spent[ticket.owner]
        self._now = max(self._now, spent)
        self._spent[ticket.owner] = spent + self._price(ticket)
        self._forget_the_idle()

    def settle(self, ticket: Ticket, seconds: float) -> None:
        """The job that was taken has cost so many seconds; the charge is put right."""
        if ticket.owner in self._spent:
            self._spent[ticket.owner] += (seconds - ticket.seconds) / self._weight(ticket.owner)

    def class_of(self, ticket: Ticket, now: float) -> int:
        starving = now - ticket.since >= self._starvation
        return BACKGROUND if ticket.background and not starving else INTERACTIVE

    def rank(self, ticket: Ticket, now: float) -> tuple[int, float]:
        """The job's rank among the runs of a worker."""
        return self.class_of(ticket, now), ticket.due

    def hold(self, ticket: Ticket) -> float:
        """Seconds for which the job waits for the sake of those whose model is held: as many as it is
        worth, and at most `aging_seconds`."""
        return min(self._aging, _LOADS * ticket.load)

    def patience(self, ticket: Ticket, now: float) -> float:
        """Seconds for which the job still lets others pass that can start when it cannot."""
        return max(0.0, self.hold(ticket) - (now - ticket.since))

    def order(
        self,
        now: float,
        held: Collection[str],
        *,
        since_swap: float = math.inf,
        guest: Ticket | None = None,
    ) -> list[Ticket]:
        """All who wait, the next first, as a slot that holds these models sees them.

        `since_swap` is how many seconds ago a model was last brought there. A `guest` is put in its
        place among the others without being added.
        """

        def own_key(ticket: Ticket) -> tuple[bool, int, bool, float]:
            aged = min(now - ticket.since, since_swap) >= self.hold(ticket)
            at_hand = ticket.model in held or aged
            return not ticket.again, self.class_of(ticket, now), not at_hand, ticket.due

        tickets = [*self._tickets.values(), *([guest] if guest else ())]
        if not tickets:
            return []
        keys = {ticket.id: own_key(ticket) for ticket in tickets}
        queues: dict[str, list[Ticket]] = {}
        for ticket in sorted(tickets, key=lambda one: keys[one.id], reverse=True):
            queues.setdefault(ticket.owner, []).append(ticket)
        spent = {owner: self._spent.get(owner, self._now) for owner in queues}
        if guest is not None and all(one.owner != guest.owner for one in self._tickets.values()):
            spent[guest.owner] = max(spent[guest.owner], self._now)
        usual = sum(self._price(ticket) for ticket in tickets) / len(tickets)
        step = max(_COARSE * usual, 1e-9)
        ordered: list[Ticket] = []
        while queues:
            least = min(spent[owner] for owner in queues)

            def key(owner: str, least: float = least) -> tuple[float, ...]:
                *before, due = keys[queues[owner][-1].id]
                again, rank, at_hand = before
                return again, rank, at_hand, int((spent[owner] - least) / step), due

            owner = min(queues, key=key)
            ticket = queues[owner].pop()
            if not queues[owner]:
                del queues[owner]
            ordered.append(ticket)
            spent[owner] += self._price(ticket)
        return ordered

    def owners(self) -> Iterable[str]:
        """Those whose virtual time is kept."""
        return self._spent.keys()

    def _price(self, ticket: Ticket) -> float:
        return ticket.seconds / self._weight(ticket.owner)

    def _weight(self, owner: str) -> float:
        return self._weights.get(owner, 1.0)

    def _forget_the_idle(self) -> None:
        """Who has nothing waiting and is not ahead of the others would start anew anyway; and of too
        many, those who are ahead the least lose nothing that matters."""
        waiting = {ticket.owner for ticket in self._tickets.values()}
        idle = sorted(self._spent.keys() - waiting, key=self._spent.__getitem__)
        too_many = len(self._spent) - _MOST_OWNERS
        for place, owner in enumerate(idle):
            if place < too_many or self._spent[owner] <= self._now:
                del self._spent[owner]
