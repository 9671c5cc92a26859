"""Who asks, at any door: by his key, by being on this machine, or by the word of a trusted proxy."""

from __future__ import annotations

import re

from app.domain.access import LOCAL, SCOPES, Access, Caller
from app.domain.errors import NotAllowed, NotAuthenticated
from app.reception import Rate, Reception
from app.store.keys import KeyRing
from app.store.links import Links

_USER = re.compile(r"[A-Za-z0-9_.@-]{1,128}")

_MISSING = "This server needs a key. Send it as Authorization: Bearer."
_WRONG = "This key is not good here."


class Authenticator:
    """Where `keyless`, nobody needs a key until there is one; `trust_user` says whether a proxy may
    name the user that it asks for."""

    def __init__(
        self, keys: KeyRing, links: Links, reception: Reception, *, keyless: bool, trust_user: bool
    ) -> None:
        self._keys = keys
        self._links = links
        self._reception = reception
        self._keyless = keyless
        self._trust = trust_user

    async def caller(self, given: str, access: Access, user: str = "") -> Caller:
        """Who sent the key `given` ("" for none), for `user` as a proxy says; he may do what `access`
        asks for.

        Raises NotAuthenticated, NotAllowed, StoreUnavailable.
        """
        caller = await self._caller(given, access, user)
        if not caller.may(access):
            scope = {"link": "generate", "keys": "admin"}.get(access, access)
            raise NotAllowed(f"This key may not do this: it needs the scope {scope}.")
        return caller

    def knock(self, caller: Caller) -> Rate | None:
        """He asks for a picture; None where he may as often as he likes. Raises RateLimited."""
        return self._reception.knock(caller.owner)

    async def _caller(self, given: str, access: Access, user: str) -> Caller:
        if self._links.is_local_pass(given):
            return Caller(LOCAL, frozenset(SCOPES), everyone=True)
        if not await self._keys.needed() and self._keyless and access != "keys":
            return keyless(user, trust=self._trust)
        key = await self._keys.find(given)
        if key is None:
            raise NotAuthenticated(_WRONG if given else _MISSING)
        user = _well_formed(user) if self._trust else ""
        owner = f"{key.owner}/{user}" if user else key.owner
        scopes = frozenset(key.scopes)
        return Caller(owner, scopes, key.id, everyone="admin" in scopes and not user)


def keyless(user: str, *, trust: bool) -> Caller:
    """Who asks where no keys are needed: the user that a trusted proxy names, or the one at home."""
    user = _well_formed(user) if trust else ""
    return Caller(user or LOCAL, frozenset(SCOPES), everyone=not user)


def _well_formed(user: str) -> str:
    return user if _USER.fullmatch(user) else ""
