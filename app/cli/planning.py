"""`easel models plan`: how a model would be drawn with the memory that there is."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
import typer

from app.cli._shell import stop
from app.cli.models import models
from app.domain.memory_plan import Room, Weights, choose, refusal
from app.engines.fitting import plans_for
from app.settings import load_cards, load_settings
from app.workers.budget import memory_of_machine

_GIGA = 1_000_000_000


@models.command()
def plan(
    name: str,
    vram: Annotated[float, typer.Option(min=0.1, help="Memory of the device, in GB.")],
    ram: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of the machine, in GB; this one's.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Tell how a model would be held on a device with so much memory; ends with 1 if it would not."""
    cards = load_cards(load_settings().models_dir)
    found = [card for card in cards.values() if name in (card.id, *card.aliases)]
    if not found:
        stop("there is no card for this model; `easel models` lists them", 2)
    floats: tuple[Weights, ...] = ("bfloat16", "float16", "float32")
    if dtype not in floats:
        stop(f"--dtype must be one of {', '.join(floats)}", 2)
    (card, *_) = found
    ways = plans_for(card, floats[floats.index(dtype)])
    if not ways:
        stop(f"nothing tells what model {card.id} is made of", 1)
    room = Room(round(vram * _GIGA), round(ram * _GIGA) if ram else memory_of_machine())
    best = choose(ways, room)
    if best is None:
        stop(f"model {card.id} does not fit. {refusal(ways, room)}", 1)
    if as_json:
        print(json.dumps(msgspec.to_builtins(best), indent=2))
        return
    print(
        f"{card.id}: {best.sentence}; {best.vram / _GIGA:.1f} GB on the device, "
        f"{best.ram / _GIGA:.1f} GB of the machine's memory"
    )
