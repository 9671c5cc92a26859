"""`easel generate`: on this machine, or at a server."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from app.cli._complete import control_ids, model_ids, sampler_names, style_ids
from app.cli._drawing import Drawing
from app.cli._preview import COUNT, Way, way_of
from app.cli._progress import Bars
from app.cli._remote import draw_at
from app.cli._server import At, Key, server_at
from app.cli._shell import console, errors_told, read_file, shell
from app.domain.errors import EaselError
from app.domain.lora import of_text
from app.domain.request import Arguments
from app.settings import load_settings

if TYPE_CHECKING:
    from app.service import ImageService


@shell.command()
def generate(
    prompt: str,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "out.png"
    ),
    model: Annotated[str | None, typer.Option(help="Model id.", autocompletion=model_ids)] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    n: Annotated[int | None, typer.Option(help="How many; files get -1, -2 …")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to obey.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler, such as euler_a.", autocompletion=sampler_names)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same.")] = None,
    image: Annotated[Path | None, typer.Option(help="Start from this picture.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Paint only where this is white.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="0 keeps the picture, 1 none of it.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="One of `easel controls`.", autocompletion=control_ids)
    ] = None,
    control_image: Annotated[
        Path | None, typer.Option(help="A picture made for it: edges, depth …")
    ] = None,
    control_scale: Annotated[float | None, typer.Option(help="How much it counts.")] = None,
    upscale: Annotated[int | None, typer.Option(help="2 or 4: so many times as large.")] = None,
    upscaler: Annotated[str | None, typer.Option(help="By what; lanczos if not given.")] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(help="One of `easel styles`; may be given again.", autocompletion=style_ids),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:SCALE of `easel loras`; may be given again."),
    ] = None,
    metadata: Annotated[
        bool | None, typer.Option(help="Whether the picture tells how it was drawn.")
    ] = None,
    preview: Annotated[
        Way, typer.Option(help="How the terminal shows what is not finished yet.")
    ] = "auto",
    server: At = "",
    key: Key = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end.")
    ] = False,
    json_events: Annotated[
        bool, typer.Option("--json-events", help="Print each event as well, one a line.")
    ] = False,
) -> None:
    """Draw on this machine, or at a server. Ctrl-C cancels it there."""
    bars = Bars(way_of(preview, console))
    drawing = Drawing(output, bars, as_json=as_json, as_events=json_events)
    with errors_told():
        arguments = Arguments(
            prompt=prompt,
            model=model,
            negative_prompt=negative_prompt,
            n=n,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            seed=seed,
            strength=strength,
            image=read_file(image),
            mask_image=read_file(mask),
            control=control,
            control_image=read_file(control_image),
            controlnet_conditioning_scale=control_scale,
            upscale=upscale,
            upscaler=upscaler,
            styles=tuple(style or ()),
            metadata=metadata,
            output_format=output.suffix.removeprefix(".") or None,
            previews=COUNT if bars.screen.wanted else None,
        )
        try:
            arguments = msgspec.structs.replace(arguments, loras=tuple(map(of_text, lora or ())))
            with server_at(server, key) as asked:
                if asked is not None:
                    draw_at(asked, arguments, drawing, bars)
                else:
                    asyncio.run(_generate(arguments, drawing, bars))
        except EaselError as error:
            drawing.wrong(error)
            raise


async def _generate(arguments: Arguments, drawing: Drawing, bars: Bars) -> None:
    from app.main import build
    from app.store.database import StoreRefused
    from app.workers.in_process import InProcessPool

    logging.basicConfig(level=logging.ERROR)
    settings = load_settings(preload=())
    with tempfile.TemporaryDirectory(prefix="easel-") as folder:
        gateway = build(settings, InProcessPool(settings.device_names()[:1]))
        try:
            await gateway.start(resume=False)
        except StoreRefused:  # a server that runs has it; then nothing of this is kept
            await gateway.close()
            settings = settings.model_copy(
                update={
                    "data_dir": Path(folder),
                    "loras_dir": settings.loras_dir or settings.data_dir / "loras",
                    "database": "",
                    "pictures": "",
                }
            )
            gateway = build(settings, InProcessPool(settings.device_names()[:1]))
            await gateway.start(resume=False)
        try:
            await _draw(gateway.service, arguments, drawing, bars)
        finally:
            await gateway.close()


async def _draw(service: ImageService, arguments: Arguments, drawing: Drawing, bars: Bars) -> None:
    job = await service.submit(arguments, owner="shell", door="shell")
    drawing.begins(job.id)
    with bars:
        async for numbered in service.follow(job.id):
            drawing.heard(numbered)
    for image, path in drawing.wanted():
        drawing.write(image, path, (await service.image(image.image_id)).data)
    drawing.over()
