"""`easel generate` and `easel inspect`."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from app.cli._shell import console, errors_told, read_file, shell, shown, stop
from app.domain.errors import InvalidRequest, error_from
from app.domain.events import Failed, Progressed, Queued
from app.domain.lora import of_text
from app.domain.request import Arguments
from app.service import ImageService
from app.settings import load_settings
from app.store.database import StoreRefused


@shell.command()
def generate(
    prompt: str,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "out.png"
    ),
    model: Annotated[str | None, typer.Option(help="Model id.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    n: Annotated[int | None, typer.Option(help="How many; files get -1, -2 …")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to obey.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler, such as euler_a.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same.")] = None,
    image: Annotated[Path | None, typer.Option(help="Start from this picture.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Paint only where this is white.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="0 keeps the picture, 1 none of it.")
    ] = None,
    control: Annotated[str | None, typer.Option(help="One of `easel controls`.")] = None,
    control_image: Annotated[
        Path | None, typer.Option(help="A picture made for it: edges, depth …")
    ] = None,
    control_scale: Annotated[float | None, typer.Option(help="How much it counts.")] = None,
    upscale: Annotated[int | None, typer.Option(help="2 or 4: so many times as large.")] = None,
    upscaler: Annotated[str | None, typer.Option(help="By what; lanczos if not given.")] = None,
    style: Annotated[
        list[str] | None, typer.Option(help="One of `easel styles`; may be given again.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:SCALE of `easel loras`; may be given again."),
    ] = None,
    metadata: Annotated[
        bool | None, typer.Option(help="Whether the picture tells how it was drawn.")
    ] = None,
) -> None:
    """Draw on this machine, without a server."""
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
    )
    with errors_told():
        arguments = msgspec.structs.replace(arguments, loras=tuple(map(of_text, lora or ())))
        asyncio.run(_generate(arguments, output))


async def _generate(arguments: Arguments, output: Path) -> None:
    from app.main import build
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
            await _draw(gateway.service, arguments, output)
        finally:
            await gateway.close()


async def _draw(service: ImageService, arguments: Arguments, output: Path) -> None:
    job = await service.submit(arguments, owner="shell", door="shell")
    await _watch(service, job.id)
    for index, image in sorted(job.images.items()):
        many = f"-{index + 1}" if len(job.images) > 1 else ""
        path = output.with_stem(output.stem + many)
        path.write_bytes((await service.image(image.image_id)).data)
        print(f"{path}  seed {image.seed}")


async def _watch(service: ImageService, job_id: str) -> None:
    """Show the job's progress until it ends. Raises the EaselError that it ended with."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task("Starting...", total=1.0, eta="")
        async for numbered in service.follow(job_id):
            match numbered.event:
                case Queued(eta_seconds=eta):
                    bar.update(line, description="Starting...", eta=_seconds(eta))
                case Progressed() as event:
                    bar.update(
                        line,
                        description=event.message,
                        completed=event.fraction,
                        eta=_seconds(event.eta_seconds),
                    )
                case Failed(code, message):
                    raise error_from(code, message)


def _seconds(eta: float) -> str:
    return f"{eta:.1f} s left" if eta < 60 else f"{eta / 60:.0f} min left"


@shell.command()
def inspect(
    picture: Path,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Tell how a picture was drawn, by Easel or another program, as far as its file says."""
    data = read_file(picture) or b""
    from app.engines.picture_text import read

    name = shown(str(picture))
    try:
        told = read(data)
    except InvalidRequest:
        stop(f"{name} is no PNG, JPEG or WebP that can be read", 1)
    if not told.facts:
        stop(f"{name} does not tell how it was drawn", 1)
    if as_json:  # which escapes all but visible ASCII
        print(json.dumps({"file": str(picture), **msgspec.to_builtins(told)}, indent=2))
        return
    print(f"{name}  {told.format} {told.width}x{told.height}")
    for key, value in told.facts.items():
        print(f"{shown(key):<20}  {shown(value)}")
