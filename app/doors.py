"""Makes doors that do not speak HTTP of what the settings say; what one needs is imported only then."""

from __future__ import annotations

from app.api._door import Door
from app.api._vision import Desk
from app.authentication import Authenticator
from app.gateway import Gateway
from app.settings import ConfigurationError, Settings


def nats_door(settings: Settings, gateway: Gateway, desk: Desk) -> Door:
    """The subjects on the broker at `nats_url`; it chooses its model at the `desk` of the routes."""
    from app.api._nats_link import Broker
    from app.api.nats import NatsDoor, NatsSettings

    authenticator = Authenticator(
        gateway.keys,
        gateway.links,
        gateway.service.reception,
        keyless=settings.nats_keyless,
        trust_user=False,
    )
    broker = Broker(
        servers=settings.nats_url,
        ca_file=settings.nats_ca_file,
        creds_file=settings.nats_creds_file,
        nkey_file=settings.nats_nkey_file,
    )
    told = NatsSettings(
        prefix=settings.nats_prefix,
        group=settings.nats_group,
        stream=settings.nats_stream,
        bucket=settings.nats_bucket,
        address=settings.address,
        keep_seconds=settings.link_seconds,
        max_body=settings.max_body,
        log_requests=settings.log_requests,
        keyless=settings.nats_keyless,
    )
    return NatsDoor(gateway.service, desk, authenticator, gateway.keys.needed, broker, told)


def grpc_door(settings: Settings, gateway: Gateway) -> Door:
    """The services of the `.proto` at `grpc_port`. Raises ConfigurationError."""
    try:
        from app.api.grpc.calls import Calls
        from app.api.grpc.door import GrpcDoor
    except ImportError as error:
        raise ConfigurationError(
            "the gRPC door is not built: `make` or `pip install -e .` does that"
        ) from error
    calls = Calls(
        gateway.authenticator,
        gateway.service.reception,
        gateway.metrics,
        trust_user=settings.trust_user_header,
        log_requests=settings.log_requests,
    )
    host = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host
    return GrpcDoor(
        gateway.service,
        calls,
        f"{host}:{settings.grpc_port}",
        max_message=settings.max_upload,
        heartbeat=settings.heartbeat_interval,
        tls=settings.grpc_tls(),
    )
