"""The composition root: builds the parts, hands them to each other, and makes the web application."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.plugins.pydantic import PydanticPlugin
from ulid import ULID

import app
from app.api import (
    a1111,
    diffugen,
    health,
    jobs,
    loras,
    model_files,
    openai,
    pictures,
    styles,
    vision,
)
from app.api._http import EXCEPTION_HANDLERS, DoorSettings, add_request_id
from app.api._schema import BodySchemas, openapi_config
from app.archive import Archive
from app.domain.events import NumberedEvent
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.engines.upscaler_files import find_upscalers
from app.engines.weight_bytes import weight_bytes
from app.gateway import Gateway
from app.gpu_scheduler import GpuScheduler
from app.housekeeping import Housekeeping
from app.job_board import JobBoard
from app.model_files.loras import LoraShelf
from app.model_files.shelf import ModelShelf
from app.model_files.usage import Usage
from app.presets import FILE_NAME, Presets
from app.scheduling.batch_profile import BatchProfiles
from app.scheduling.expectations import Expectations
from app.scheduling.limits import SchedulerLimits
from app.scheduling.loading import Loader
from app.scheduling.phase_times import PhaseTimes
from app.service import ImageService
from app.settings import BUNDLED, ConfigurationError, Settings, load_cards, load_styles
from app.store.blobs import open_blobs
from app.store.database import Database, StoreRefused
from app.store.history import History
from app.store.jobs import JobStore
from app.store.links import Links
from app.store.pictures import PictureStore
from app.store.statistics import Statistics
from app.store.timings import Timings
from app.webhooks.outbox import Webhooks, kind_of
from app.workers.base import WorkerPool
from app.workers.local import LocalPool


def new_id() -> str:
    return str(ULID())


def build(settings: Settings, pool: WorkerPool | None = None) -> Gateway:
    """All parts below the front doors, wired but not started. The pool is `LocalPool` if not given.

    Raises ConfigurationError.
    """
    cards = load_cards(settings.models_dir)
    for name in (
        settings.default_model,
        *settings.preload,
        *settings.pinned,
        *settings.aliases.values(),
    ):
        if name not in cards:
            raise ConfigurationError(f"the settings name model {name}, which has no card")
    try:
        database = Database.at(settings.database_url(), synchronous=settings.database_sync)
        blobs = open_blobs(
            settings.pictures or settings.data_dir / "images", settings.pictures_options
        )
        links = Links.open(settings.data_dir)
    except (StoreRefused, OSError, ValueError) as error:
        raise ConfigurationError(f"the store cannot be used: {error}") from error
    stored = PictureStore(database, blobs, memory_bytes=settings.image_memory)
    board = JobBoard(JobStore(database), clock=time.time, new_id=new_id)
    webhooks = Webhooks(settings.webhook_policy())
    board.observe(partial(_tell, webhooks))
    try:
        upscalers = find_upscalers(settings.upscalers_dir or settings.data_dir / "upscalers")
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if both := cards.keys() & upscalers.keys():
        raise ConfigurationError(f"model {min(both)} has the name of an upscaler")
    shelf = open_shelf(settings, {**cards, **{name: one.card for name, one in upscalers.items()}})
    times = PhaseTimes()
    pool = pool or LocalPool(
        settings.device_names(), capacity=settings.max_running, budget=settings.budget()
    )
    expectations = Expectations(
        times,
        BatchProfiles(settings.data_dir / "batch_profiles.json", enabled=settings.batching),
        weight_bytes,
    )
    scheduler = GpuScheduler(
        pool,
        board,
        expectations,
        stored,
        shelf,
        SchedulerLimits(
            max_queue=settings.max_queue,
            aging_seconds=settings.aging_seconds,
            generation_timeout=settings.generation_timeout,
            stall_seconds=settings.stall_seconds,
            starvation_seconds=settings.starvation_seconds,
            max_models=settings.max_models,
            owner_weights=settings.owner_weights,
        ),
        preload=[cards[name] for name in settings.preload],
        new_id=new_id,
    )
    archive = Archive(
        board,
        History(database, stored),
        stored,
        Statistics(database),
        links,
        link_seconds=settings.link_seconds,
        low_water=settings.low_water,
        database_room=database.free_bytes,
    )
    service = ImageService(
        cards,
        settings.default_model,
        settings.foreign_models,
        settings.aliases,
        scheduler,
        board,
        archive,
        Presets(settings.data_dir / FILE_NAME),
        load_styles(settings.styles_file),
        upscalers,
        shelf,
        open_loras(settings, shelf),
        check_webhook=webhooks.check,
        loader=Loader(pool, shelf, expectations),
        metadata=settings.metadata,
    )
    housekeeping = Housekeeping(times, Timings(database), archive, settings.history_limits())
    return Gateway(service, scheduler, board, database, stored, housekeeping, webhooks)


def open_shelf(settings: Settings, cards: Mapping[str, ModelCard]) -> ModelShelf:
    """What is known of the models' files."""
    return ModelShelf(
        cards,
        Usage(settings.data_dir / "model_use.json"),
        bundled=BUNDLED,
        auto=settings.downloads == "auto",
        max_disk=settings.max_disk,
        pinned=settings.pinned,
    )


def open_loras(settings: Settings, shelf: ModelShelf) -> LoraShelf:
    """Which LoRAs there are; the shelf knows them from now on. Raises ConfigurationError."""
    folder = settings.loras_dir or settings.data_dir / "loras"
    return LoraShelf(folder, settings.lora_cards(), shelf, most=settings.max_loras)


def _tell(webhooks: Webhooks, job: Job, numbered: NumberedEvent) -> None:
    if job.webhook is not None and (kind := kind_of(numbered)) is not None:
        webhooks.tell(job.id, job.webhook, kind, jobs.shown(job))


def create_app(settings: Settings, gateway: Gateway) -> Litestar:
    """The web application over what `build` made, which starts and stops with it."""
    service = gateway.service

    @asynccontextmanager
    async def parts(_: Litestar) -> AsyncIterator[None]:
        try:
            await gateway.start()
            yield
        finally:
            await gateway.close()

    def provide_service() -> ImageService:
        return service

    doors = DoorSettings(
        heartbeat=settings.heartbeat_interval,
        on_hang_up=settings.on_hang_up,
        json_heartbeat_after=settings.json_heartbeat_after,
        efforts=settings.quality,
        trust_user_header=settings.trust_user_header,
    )

    def provide_doors() -> DoorSettings:
        return doors

    return Litestar(
        [
            *openai.HANDLERS,
            Router("/", route_handlers=openai.UPLOADS, request_max_body_size=settings.max_upload),
            *diffugen.HANDLERS,
            a1111.door(a1111.Console(service), settings.max_upload),
            vision.door(vision.Desk(service)),
            *jobs.HANDLERS,
            *pictures.HANDLERS,
            *styles.HANDLERS,
            *model_files.HANDLERS,
            *loras.HANDLERS,
            *health.HANDLERS,
        ],
        lifespan=[parts],
        dependencies={
            "service": Provide(provide_service, sync_to_thread=False),
            "doors": Provide(provide_doors, sync_to_thread=False),
        },
        exception_handlers=EXCEPTION_HANDLERS,
        before_send=[add_request_id],
        request_max_body_size=settings.max_body,
        openapi_config=openapi_config(app.__version__),
        plugins=[BodySchemas(), PydanticPlugin(validate_strict=True)],
        logging_config=None,
    )
