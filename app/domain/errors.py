"""Everything that can go wrong, as one small tree. Codes are protocol-free; each front door maps them.

    EaselError
    ├── InvalidRequest       the client can mend it: a value, a limit, a name
    │   ├── UnknownModel         no card answers to this id
    │   ├── UnknownLora          no LoRA has this name
    │   ├── ModelInUse           its files cannot go now
    │   ├── KeyReused            an idempotency key that stands for another request
    │   └── NotFound             no such job or picture
    ├── Refused              who asks may not
    │   ├── NotAuthenticated     no key, or none that is good
    │   └── NotAllowed           a good key, but not for this; or a page of elsewhere asks
    ├── Unavailable          the same request may work later; carries the seconds after which
    │   ├── TryLater             those seconds are known for certain
    │   │   ├── QueueFull            as many jobs wait as may
    │   │   ├── UploadsFull          the pictures that wait take as much memory as they may
    │   │   ├── RateLimited          the key has asked too often, or has too many jobs
    │   │   └── QuotaSpent           the key has used what it may of the devices today
    │   └── ShuttingDown         the server is going away
    ├── GenerationFailed     GPU time may have been spent
    │   ├── InvalidOutput        the model produced NaN or infinity
    │   ├── OutOfMemory          the device has no room for this request
    │   ├── ModelUnavailable     the weights are missing, damaged or of a kind we refuse
    │   │   └── ModelNotFetched      they could not be fetched just now; carries seconds, too
    │   ├── WorkerCrashed        the process that drew it died, twice
    │   ├── TimedOut             drawing took longer than the server allows
    │   └── DeadlineExceeded     it was not finished when its client said it must be
    └── Cancelled            somebody asked for it to stop

Messages are written for the client that reads them: they never quote a foreign exception, a path or
an address.
"""

from __future__ import annotations

from typing import ClassVar


class EaselError(Exception):
    """Base of the tree. `code` is stable and machine-readable, `message` is one English sentence."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(EaselError):
    """A field holds what it must not hold; `param` names the field."""

    code = "invalid_value"


class UnknownModel(InvalidRequest):
    code = "model_not_found"


class UnknownLora(InvalidRequest):
    code = "lora_not_found"


class ModelInUse(InvalidRequest):
    code = "model_in_use"


class KeyReused(InvalidRequest):
    code = "idempotency_key_reused"


class NotFound(InvalidRequest):
    code = "not_found"


class Refused(EaselError):
    code = "refused"


class NotAuthenticated(Refused):
    code = "invalid_api_key"


class NotAllowed(Refused):
    code = "not_allowed"


class Unavailable(EaselError):
    """`retry_after` is the seconds after which to try again, 1 to 59."""

    code = "unavailable"
    retry_after: int = 5


class TryLater(Unavailable):
    """Not now; `retry_after` is in seconds, 1 to 59."""

    code = "try_later"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(TryLater):
    code = "queue_full"


class UploadsFull(TryLater):
    code = "uploads_full"


class RateLimited(TryLater):
    code = "rate_limit_exceeded"


class QuotaSpent(TryLater):
    code = "insufficient_quota"


class ShuttingDown(Unavailable):
    code = "server_draining"
    retry_after = 10


class GenerationFailed(EaselError):
    code = "generation_failed"


class InvalidOutput(GenerationFailed):
    code = "invalid_output"


class OutOfMemory(GenerationFailed):
    code = "out_of_memory"


class ModelUnavailable(GenerationFailed):
    code = "model_unavailable"


class ModelNotFetched(ModelUnavailable):
    """What kept the files away may be over soon; `retry_after` is in seconds, 1 to 59."""

    code = "model_not_fetched"
    retry_after: int = 5


class WorkerCrashed(GenerationFailed):
    code = "worker_crashed"


class TimedOut(GenerationFailed):
    code = "generation_timeout"


class DeadlineExceeded(GenerationFailed):
    code = "deadline_exceeded"


class Cancelled(EaselError):
    code = "cancelled"


def _family(root: type[EaselError]) -> list[type[EaselError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _family(child))]


def error_from(code: str, message: str, param: str | None = None) -> EaselError:
    """The error of the tree that carries `code`: how a failure comes back from another process.

    An unknown code becomes a plain `GenerationFailed`.
    """
    for kind in _family(EaselError):
        if kind.code == code and not issubclass(kind, TryLater):
            return kind(message, param=param)
    return GenerationFailed(message, param=param)
