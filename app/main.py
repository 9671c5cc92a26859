"""The composition root: builds the parts, hands them to each other, and makes the web application."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.plugins.pydantic import PydanticPlugin
from ulid import ULID

import app
from app.api import (
    a1111,
    controls,
    diffugen,
    generate_ws,
    health,
    jobs,
    keys,
    loras,
    mcp,
    metrics,
    model_files,
    openai,
    pictures,
    styles,
    vision,
)
from app.api._access import Doorkeeper
from app.api._door import Door
from app.api._gate import Gate, hosts_of
from app.api._http import EXCEPTION_HANDLERS, DoorSettings, add_request_id, say_goodbye
from app.api._jobs import shown
from app.api._schema import JOB_HEADERS, RATE_HEADERS, BodySchemas, openapi_config
from app.api._tracing import Traced
from app.api._vision import Desk
from app.archive import Archive
from app.authentication import Authenticator
from app.catalogue import Catalogue
from app.domain.events import NumberedEvent
from app.domain.job import Job
from app.domain.model_card import ModelCard
from app.domain.request import GenerationRequest
from app.doors import grpc_door, nats_door
from app.engines.upscaler_files import find_upscalers
from app.engines.weight_bytes import weight_bytes
from app.gateway import Gateway
from app.gpu_scheduler import GpuScheduler
from app.housekeeping import Housekeeping
from app.job_board import JobBoard
from app.metrics import Metrics
from app.model_files.loras import LoraShelf
from app.model_files.shelf import ModelShelf
from app.model_files.usage import Usage
from app.presets import FILE_NAME, Presets
from app.reception import Reception
from app.scheduling.batch_profile import BatchProfiles
from app.scheduling.expectations import Expectations
from app.scheduling.limits import SchedulerLimits
from app.scheduling.loading import Loader
from app.scheduling.phase_times import PhaseTimes
from app.scheduling.schedule import Schedule
from app.service import ImageService
from app.settings import (
    BUNDLED,
    ConfigurationError,
    Settings,
    load_cards,
    load_controls,
    load_styles,
)
from app.store.blobs import open_blobs
from app.store.database import Database, StoreRefused
from app.store.history import History
from app.store.jobs import JobStore
from app.store.keys import KeyRing
from app.store.links import Links
from app.store.pictures import PictureStore
from app.store.spending import Ledger
from app.store.statistics import Statistics
from app.store.timings import Timings
from app.tracing import Tracing, TracingMissing
from app.webhooks.outbox import Webhooks, kind_of
from app.workers.base import WorkerPool
from app.workers.local import LocalPool

_WEBHOOKS_KEPT = 3 * 86_400.0
"""Seconds after its end for which a job's webhook is tried again by a later process."""


def new_id() -> str:
    return str(ULID())


def build(settings: Settings, pool: WorkerPool | None = None) -> Gateway:
    """All parts below the front doors, wired but not started. The pool is `LocalPool` if not given.

    Raises ConfigurationError.
    """
    catalogue = read_catalogue(settings)
    cards = catalogue.cards
    try:
        database = Database.at(settings.database_url(), synchronous=settings.database_sync)
        blobs = open_blobs(
            settings.pictures or settings.data_dir / "images", settings.pictures_options
        )
        links = Links.open(settings.data_dir)
    except (StoreRefused, OSError, ValueError) as error:
        raise ConfigurationError(f"the store cannot be used: {error}") from error
    ring, ledger = KeyRing(database), Ledger(database)
    stored = PictureStore(database, blobs, memory_bytes=settings.image_memory)
    jobs = JobStore(database)
    board = JobBoard(jobs, clock=time.time, new_id=new_id)
    webhooks = Webhooks(settings.webhook_policy(), settled=jobs.webhook_settled)
    board.observe(partial(_tell, webhooks))
    shelf = open_shelf(settings, catalogue.all)
    times = PhaseTimes()
    pool = pool or LocalPool(
        settings.device_names(), capacity=settings.max_running, budget=settings.budget()
    )
    expectations = Expectations(
        times,
        BatchProfiles(settings.data_dir / "batch_profiles.json", enabled=settings.batching),
        weight_bytes,
    )
    counted = Metrics(
        slots=lambda: pool.slots().values(),
        by_class=lambda: scheduler.by_class(),  # noqa: PLW0108 - it is made below
    )
    board.observe(counted.heard)
    tracing = _tracing(settings.traces, board)

    def expected(request: GenerationRequest, workers: WorkerPool = pool) -> float:
        return expectations.seconds(request, Schedule.device(workers.slots().values()))

    reception = Reception(
        allowance=ring.allowance,
        spent=ledger.today,
        seconds_of=ledger.of_job,
        unfinished=board.going_on,
        expected=expected,
        max_queue=settings.max_queue,
        max_bytes=settings.max_waiting_uploads,
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
        onlooker=counted,
        spend=ledger.add,
        may_run=reception.may_run,
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
        catalogue,
        scheduler,
        board,
        archive,
        Presets(settings.data_dir / FILE_NAME),
        shelf,
        open_loras(settings, shelf),
        check_webhook=webhooks.check,
        loader=Loader(pool, shelf, expectations),
        reception=reception,
        metadata=settings.metadata,
    )
    housekeeping = Housekeeping(
        times, Timings(database), archive, settings.history_limits(), ledger
    )
    authenticator = Authenticator(
        ring,
        links,
        reception,
        keyless=settings.keyless,
        trust_user=settings.trust_user_header,
    )
    return Gateway(
        service,
        scheduler,
        board,
        database,
        stored,
        housekeeping,
        webhooks,
        ring,
        ledger,
        links,
        authenticator,
        counted,
        tracing,
        reread=partial(read_catalogue, settings),
        remind=partial(_remind, webhooks, jobs),
    )


def read_catalogue(settings: Settings) -> Catalogue:
    """What the files of settings, cards, styles and upscalers say now. Raises ConfigurationError."""
    try:
        return Catalogue(
            load_cards(settings.models_dir),
            default_model=settings.default_model,
            foreign_models=settings.foreign_models,
            aliases=settings.aliases,
            mentioned=(*settings.preload, *settings.pinned),
            styles=load_styles(settings.styles_file),
            upscalers=find_upscalers(settings.upscalers_dir or settings.data_dir / "upscalers"),
            controls=load_controls(settings.controls_dir),
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _tracing(endpoint: str, board: JobBoard) -> Tracing | None:
    if not endpoint:
        return None
    try:
        tracing = Tracing(endpoint)
    except TracingMissing as error:
        raise ConfigurationError(str(error)) from error
    board.greet(tracing.opened)
    board.observe(tracing.heard)
    return tracing


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


async def _remind(webhooks: Webhooks, jobs: JobStore) -> None:
    """Tell of the ends that an earlier process could not tell. Raises StoreUnavailable."""
    for job in await jobs.webhooks_due(time.time() - _WEBHOOKS_KEPT):
        if job.webhook is not None:
            webhooks.tell(job.id, job.webhook, "finished", shown(job))


def _tell(webhooks: Webhooks, job: Job, numbered: NumberedEvent) -> None:
    if job.webhook is not None and (kind := kind_of(numbered)) is not None:
        webhooks.tell(job.id, job.webhook, kind, shown(job))


def other_doors(settings: Settings, gateway: Gateway, desk: Desk) -> list[Door]:
    """The doors that do not speak HTTP, as far as they are wanted; `desk` is the application's.

    Raises ConfigurationError.
    """
    doors: list[Door] = []
    if settings.grpc_port:
        doors.append(grpc_door(settings, gateway))
    if settings.nats_url:
        doors.append(nats_door(settings, gateway, desk))
    return doors


def create_app(settings: Settings, gateway: Gateway, desk: Desk | None = None) -> Litestar:
    """The web application over what `build` made, which starts and stops with it."""
    service = gateway.service
    agents = mcp.Agents(service, gateway.authenticator, max_body=settings.max_upload)

    @asynccontextmanager
    async def parts(_: Litestar) -> AsyncIterator[None]:
        try:
            await gateway.start()
            yield
        finally:
            await agents.close()
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

    def provide_metrics() -> Metrics:
        return gateway.metrics

    def provide_authenticator() -> Authenticator:
        return gateway.authenticator

    application = Litestar(
        [
            Router(
                "/",
                route_handlers=[*openai.HANDLERS, *openai.UPLOADS, *jobs.HANDLERS],
                request_max_body_size=settings.max_upload,
            ),
            *diffugen.HANDLERS,
            *generate_ws.HANDLERS,
            a1111.door(a1111.Console(service), settings.max_upload),
            vision.door(desk or Desk(service)),
            *controls.HANDLERS,
            *pictures.HANDLERS,
            *styles.HANDLERS,
            *model_files.HANDLERS,
            *loras.HANDLERS,
            mcp.door(agents),
            *health.HANDLERS,
            keys.door(keys.KeyDesk(gateway.keys, gateway.ledger)),
            *metrics.HANDLERS,
        ],
        middleware=[
            metrics.Counting(gateway.metrics),
            *([Traced(gateway.tracing)] if gateway.tracing else []),
        ],
        guards=[Doorkeeper(gateway.authenticator).check],
        lifespan=[parts],
        dependencies={
            "service": Provide(provide_service, sync_to_thread=False),
            "doors": Provide(provide_doors, sync_to_thread=False),
            "metrics": Provide(provide_metrics, sync_to_thread=False),
            "authenticator": Provide(provide_authenticator, sync_to_thread=False),
        },
        exception_handlers=EXCEPTION_HANDLERS,
        before_send=[add_request_id, say_goodbye(lambda: gateway.scheduler.closing)],
        request_max_body_size=settings.max_body,
        openapi_config=openapi_config(app.__version__),
        plugins=[BodySchemas(), PydanticPlugin(validate_strict=True)],
        logging_config=None,
        cors_config=_cors(settings),
    )
    # Before the routes, and so before what is no route as well; after the request has its id.
    application.asgi_handler = Gate(
        application.asgi_handler,
        hosts_of(settings.allowed_hosts, keyless=settings.keyless),
        settings.cors_origins,
        service.reception,
        log_requests=settings.log_requests,
    )
    return application


def _cors(settings: Settings) -> CORSConfig | None:
    if not settings.cors_origins:
        return None
    told = [*JOB_HEADERS, *RATE_HEADERS, "x-request-id", "retry-after"]
    return CORSConfig(allow_origins=list(settings.cors_origins), expose_headers=told)
