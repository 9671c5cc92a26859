"""Keys, for who has an admin's: made, listed, revoked. `easel keys` asks these routes where a server
has the database. They let in nobody without a key, also where no other route asks for one."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Router, delete, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, JSONBody
from pydantic import BaseModel, Field

from app.api._http import require_json
from app.api._schema import BODY, answers
from app.domain.access import Allowance, ApiKey, Scope
from app.store.keys import KeyRing
from app.store.spending import Ledger

AtDesk = NamedDependency["KeyDesk"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")]


class KeyBody(BaseModel):
    """`owner` is whose jobs come with the key, `name` if not given. Limits of 0 are none."""

    name: Name
    owner: Name | None = None
    scopes: list[Scope] = Field(default=["generate"], min_length=1, max_length=3)
    requests_per_minute: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    running_jobs: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    queue_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    gpu_seconds_per_day: Annotated[float, Field(ge=0, le=1e9)] = 0.0

    @property
    def allowance(self) -> Allowance:
        return Allowance(**{name: getattr(self, name) for name in Allowance.__struct_fields__})


class KeyShown(msgspec.Struct, omit_defaults=True):
    """A key but for its text, which only the answer that makes it tells, as `key`. Times are Unix
    seconds; `gpu_seconds_today` is what its owner has used since midnight (UTC)."""

    id: str
    name: str
    owner: str
    scopes: list[Scope]
    created: float
    revoked: float | None
    requests_per_minute: int
    running_jobs: int
    queue_share: float
    gpu_seconds_per_day: float
    gpu_seconds_today: float
    key: str | None = None


class KeyList(msgspec.Struct):
    keys: list[KeyShown]


class KeyDesk:
    def __init__(self, keys: KeyRing, ledger: Ledger) -> None:
        self.keys = keys
        self.ledger = ledger

    def shown(self, key: ApiKey) -> dict[str, Any]:
        return shown(key, self.ledger.today(key.owner))


def shown(key: ApiKey, spent: float) -> dict[str, Any]:
    """A key as these routes and the shell tell it."""
    told = msgspec.structs.asdict(key)
    del told["allowance"]
    limits = msgspec.structs.asdict(key.allowance)
    return {**told, **limits, "gpu_seconds_today": round(spent, 3)}


@post(
    "/keys",
    status_code=201,
    guards=[require_json],
    **answers(KeyShown, *BODY, status=201, access="keys"),
)
async def create_key(data: JSONBody[KeyBody], key_desk: AtDesk) -> dict[str, Any]:
    """A new key. Its text is in this answer and nowhere else."""
    key, text = await key_desk.keys.create(
        data.name,
        owner=data.owner or data.name,
        scopes=tuple(data.scopes),
        allowance=data.allowance,
    )
    return {**key_desk.shown(key), "key": text}


@get("/keys", **answers(KeyList, access="keys"))
async def list_keys(key_desk: AtDesk) -> dict[str, Any]:
    """All keys, revoked ones too."""
    return {"keys": [key_desk.shown(key) for key in await key_desk.keys.list()]}


@delete("/keys/{key_id:str}", status_code=200, **answers(KeyList, 400, 404, access="keys"))
async def revoke_key(
    key_id: FromPath[str], key_desk: AtDesk, forget: FromQuery[bool] = False
) -> dict[str, Any]:
    """Let nobody in with it any more; with `forget`, remove it from the list as well."""
    if forget:
        await key_desk.keys.forget(key_id)
    else:
        await key_desk.keys.revoke(key_id)
    return {"keys": [key_desk.shown(key) for key in await key_desk.keys.list()]}


def door(desk: KeyDesk) -> Router:
    """All routes, around one desk."""
    return Router(
        "/",
        route_handlers=[create_key, list_keys, revoke_key],
        dependencies={"key_desk": Provide(lambda: desk, sync_to_thread=False)},
    )
