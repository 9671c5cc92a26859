"""Settings: config/easel.toml, overridden by EASEL_* in the environment; and the model cards."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from app import devices
from app.domain.control import ControlCard
from app.domain.fallback import chain
from app.domain.lora import KEPT_BYTES, NAME
from app.domain.model_card import ModelCard
from app.domain.model_source import HUB
from app.domain.style import Style, Styles
from app.logs import Format as LogFormat
from app.model_files.loras import lora_card
from app.webhooks.policy import WebhookPolicy
from app.workers.budget import Budget

if TYPE_CHECKING:
    from app.store.history import Limits

_PACKAGE = Path(__file__).parent
BUNDLED = _PACKAGE / "bundled_models"

Share = Literal["auto"] | Annotated[ByteSize, Field(gt=0)]
"""Bytes ("12GB", "900MiB", a number), or a part of what there is."""

StyleId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


LoraName = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]


def _named(given: Literal["auto"] | tuple[str, ...]) -> Literal["auto"] | tuple[str, ...]:
    return given if given == "auto" else devices.named(given)


def _brokers(given: object) -> object:
    """Addresses of NATS servers, of a list or with commas between them."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        given = TypeAdapter(list[str]).validate_json(given)
    elif isinstance(given, str):
        given = tuple(one.strip() for one in given.split(",") if one.strip())
    if isinstance(given, list | tuple):
        for one in given:
            if not isinstance(one, str) or not _is_broker(one):
                raise ValueError("each must be like nats://HOST:4222 or tls://HOST:4222")
    return given


def _is_broker(url: str) -> bool:
    try:
        found = urlsplit(url)
        return found.scheme in ("nats", "tls") and bool(found.hostname) and found.port != 0
    except ValueError:  # what is no port, or no address in brackets
        return False


class HubLora(BaseModel):
    """A LoRA that may be fetched: `source` as in a model card, and the file in that repository."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[str, StringConstraints(pattern=f"^{HUB}")]
    file: Annotated[str, StringConstraints(pattern=r"\.safetensors$")]
    revision: str


class ConfigurationError(Exception):
    """A setting or a model card cannot be used; the message says which and why."""


def config_dir() -> Path:
    """`EASEL_CONFIG_DIR`, else the checkout's `config/`, else the one inside the installed package."""
    if given := os.environ.get("EASEL_CONFIG_DIR"):
        return Path(given)
    checkout = _PACKAGE.parent / "config"
    return checkout if checkout.is_dir() else _PACKAGE / "config"


class Settings(BaseSettings):
    """All settings; each is explained in config/easel.toml. Times are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="EASEL_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=5199, ge=0, le=65535)
    grpc_port: int = Field(default=0, ge=0, le=65535)
    grpc_certificate: Path | None = None
    grpc_key: Path | None = None
    data_dir: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("easel")))
    models_dir: Path = Field(default_factory=lambda: config_dir() / "models")
    controls_dir: Path = Field(default_factory=lambda: config_dir() / "controls")
    upscalers_dir: Path | None = None
    loras_dir: Path | None = None
    loras: dict[LoraName, HubLora] = Field(default_factory=dict)
    max_loras: PositiveInt = 4
    lora_memory: ByteSize = ByteSize(KEPT_BYTES)
    styles_file: Path = Field(default_factory=lambda: config_dir() / "styles.toml")
    default_model: str = "sketch"
    aliases: dict[str, str] = Field(default_factory=dict)
    foreign_models: tuple[str, ...] = ("dall-e-*", "gpt-image-*", "chatgpt-image-*")
    devices: Annotated[Literal["auto"] | tuple[str, ...], AfterValidator(_named)] = "auto"
    max_vram: Share = "auto"
    max_ram: Share = "auto"
    max_models: int = Field(default=0, ge=0)
    model_ttl: float = Field(default=0.0, ge=0)
    pinned: tuple[str, ...] = ()
    downloads: Literal["auto", "pull"] = "auto"
    max_disk: ByteSize = ByteSize(0)
    preload: tuple[str, ...] = ("sketch",)
    max_queue: PositiveInt = 100
    max_running: PositiveInt = 8
    batching: bool = True
    aging_seconds: float = Field(default=10.0, ge=0)
    starvation_seconds: float = Field(default=60.0, ge=0)
    trust_user_header: bool = False
    proxy_authenticates: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    log_format: LogFormat = "auto"
    log_requests: bool = True
    owner_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    generation_timeout: PositiveFloat = 300.0
    stall_seconds: PositiveFloat = 120.0
    heartbeat_interval: PositiveFloat = 15.0
    drain_seconds: float = Field(default=5.0, ge=0)
    max_body: PositiveInt = 1_000_000
    max_upload: PositiveInt = 64_000_000
    max_waiting_uploads: ByteSize = ByteSize(512_000_000)
    on_hang_up: str = Field(default="cancel", pattern=r"^(cancel|finish|grace:\d{1,5})$")
    json_heartbeat_after: float = Field(default=0.0, ge=0)
    quality: dict[str, PositiveFloat] = Field(default_factory=dict)
    database: str = ""
    database_sync: Literal["normal", "full"] = "normal"
    pictures: str = ""
    pictures_options: dict[str, str] = Field(default_factory=dict)
    low_water: ByteSize = ByteSize(256_000_000)
    link_seconds: PositiveFloat = 3600.0
    history_seconds: float = Field(default=0.0, ge=0)
    history_jobs: int = Field(default=0, ge=0)
    history_bytes: ByteSize = ByteSize(0)
    owner_jobs: int = Field(default=0, ge=0)
    owner_bytes: ByteSize = ByteSize(0)
    metadata: bool = True
    webhook_hosts: tuple[str, ...] = ()
    webhook_secret: SecretStr = SecretStr("")
    public_url: str = Field(
        default="", pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._/-]*)?)?$"
    )
    nats_url: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_brokers)] = ()
    nats_prefix: str = Field(
        default="ai.vision.imagegen", pattern=r"^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,9}$"
    )
    nats_group: str = Field(default="easel", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    nats_stream: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,64}$")
    nats_bucket: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,64}$")
    nats_ca_file: Path | None = None
    nats_creds_file: Path | None = None
    nats_nkey_file: Path | None = None
    traces: str = Field(
        default="", pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._/-]*)?)?$"
    )
    image_memory: PositiveInt = 256 * 1024 * 1024

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = TomlConfigSettingsSource(settings_cls, config_dir() / "easel.toml")
        return init_settings, env_settings, file

    def budget(self) -> Budget:
        """What the models of a worker may take."""
        return Budget(
            max_vram=0 if self.max_vram == "auto" else int(self.max_vram),
            max_ram=0 if self.max_ram == "auto" else int(self.max_ram),
            max_models=self.max_models,
            pinned=self.pinned,
            model_ttl=self.model_ttl,
            lora_memory=int(self.lora_memory),
        )

    def lora_cards(self) -> dict[str, ModelCard]:
        """What the shelf needs to know of the LoRAs that may be fetched. Raises ConfigurationError."""
        try:
            return {
                name: lora_card(name, one.source, file=one.file, revision=one.revision)
                for name, one in self.loras.items()
            }
        except ValueError as error:
            raise ConfigurationError(f"loras: {_mistakes(error)}") from error

    @property
    def keyless(self) -> bool:
        """Whether requests may come without a key as long as there is none: only from this machine, or
        through a proxy that has asked who it is."""
        return self.proxy_authenticates or self.loopback

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return _is_loopback(self.host)

    @property
    def nats_keyless(self) -> bool:
        """The same as `keyless`, of requests that come by NATS."""
        hosts = (urlsplit(url).hostname or "" for url in self.nats_url)
        return self.proxy_authenticates or all(map(_is_loopback, hosts))

    @property
    def address(self) -> str:
        """Where links lead that are given to who did not come by HTTP."""
        host = f"[{self.host}]" if ":" in self.host and self.host[0] != "[" else self.host
        return self.public_url.rstrip("/") or f"http://{host}:{self.port}"

    def grpc_tls(self) -> tuple[Path, Path] | None:
        """The files of certificate and key, where gRPC is TLS. Raises ConfigurationError."""
        if self.grpc_certificate is None and self.grpc_key is None:
            return None
        if self.grpc_certificate is None or self.grpc_key is None:
            raise ConfigurationError("grpc_certificate and grpc_key go together: one is missing")
        return self.grpc_certificate, self.grpc_key

    def database_url(self) -> str:
        """Where jobs are kept: by default in a file of the data folder."""
        return self.database or f"sqlite:///{self.data_dir / 'easel.db'}"

    def history_limits(self) -> Limits:
        """What is forgotten; zeros are without limit."""
        from app.store.history import Limits  # the shell can do without a database

        return Limits(
            seconds=self.history_seconds or None,
            jobs=self.history_jobs or None,
            bytes=self.history_bytes or None,
            jobs_of_owner=self.owner_jobs or None,
            bytes_of_owner=self.owner_bytes or None,
        )

    def webhook_policy(self) -> WebhookPolicy:
        """Where webhooks may go, and what signs them. Raises ConfigurationError."""
        try:
            return WebhookPolicy(self.webhook_hosts, self.webhook_secret.get_secret_value())
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    def device_names(self) -> tuple[str, ...]:
        """The devices to use, as torch calls them."""
        return devices.found() if self.devices == "auto" else self.devices


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def load_settings(**given: object) -> Settings:
    """Raises ConfigurationError."""
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(_mistakes(error)) from error


def load_cards(folder: Path) -> dict[str, ModelCard]:
    """All cards in `folder`, by id, in the order of their file names.

    Raises ConfigurationError.
    """
    cards: dict[str, ModelCard] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            card = ModelCard.model_validate(tomllib.loads(path.read_text("utf-8")))
        except (ValidationError, tomllib.TOMLDecodeError, OSError) as error:
            raise ConfigurationError(f"{path.name}: {_mistakes(error)}") from error
        if card.id in cards:
            raise ConfigurationError(f"{path.name}: a second card for {card.id}")
        sources = {"source": _source(card.source, path), "base": _source(card.base, path)}
        cards[card.id] = card.model_copy(update=sources)
    if not cards:
        raise ConfigurationError(f"there is no model card in {folder}")
    try:
        for name in cards:
            chain(cards, name)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    return cards


def load_controls(folder: Path) -> dict[str, ControlCard]:
    """All cards of control networks in `folder`, by id; none where there is no such folder.

    Raises ConfigurationError.
    """
    cards: dict[str, ControlCard] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            card = ControlCard.model_validate(tomllib.loads(path.read_text("utf-8")))
        except (ValueError, OSError) as error:  # of pydantic and of TOML, too
            raise ConfigurationError(f"{path.name}: {_mistakes(error)}") from error
        if card.id in cards:
            raise ConfigurationError(f"{path.name}: a second card for {card.id}")
        cards[card.id] = card.model_copy(update={"source": _source(card.source, path)})
    return cards


def load_styles(file: Path) -> Styles:
    """All styles in the file; none where there is no such file. Raises ConfigurationError."""
    try:
        found = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
        return Styles(TypeAdapter(dict[StyleId, Style]).validate_python(found))
    except ValidationError as error:
        raise ConfigurationError(f"{file.name}: {_mistakes(error)}") from error
    except (ValueError, OSError) as error:  # no TOML, no UTF-8, two of one name
        raise ConfigurationError(f"{file.name}: {error}") from error


def _mistakes(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    found = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return "; ".join(found)


def _source(source: str, card_file: Path) -> str:
    if source.startswith("bundled:"):
        return str(BUNDLED / source.removeprefix("bundled:"))
    if not source or source.startswith(HUB):
        return source
    return str((card_file.parent / source).resolve())
