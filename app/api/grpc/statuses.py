"""Errors as gRPC tells them: a code, a sentence, and details that programs read."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc_status import rpc_status

from app.domain import errors
from app.store.errors import StorageFull, StoreUnavailable

DOMAIN = "easel"
"""Whose the reasons in `ErrorInfo` are: the codes of `app/domain/errors.py`."""

CODES: dict[str, StatusCode] = {
    errors.InvalidRequest.code: StatusCode.INVALID_ARGUMENT,
    errors.UnknownModel.code: StatusCode.NOT_FOUND,
    errors.UnknownLora.code: StatusCode.NOT_FOUND,
    errors.NotFound.code: StatusCode.NOT_FOUND,
    errors.ModelInUse.code: StatusCode.FAILED_PRECONDITION,
    errors.KeyReused.code: StatusCode.FAILED_PRECONDITION,
    errors.Refused.code: StatusCode.PERMISSION_DENIED,
    errors.NotAuthenticated.code: StatusCode.UNAUTHENTICATED,
    errors.NotAllowed.code: StatusCode.PERMISSION_DENIED,
    errors.QueueFull.code: StatusCode.RESOURCE_EXHAUSTED,
    errors.RateLimited.code: StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaSpent.code: StatusCode.RESOURCE_EXHAUSTED,
    errors.UploadsFull.code: StatusCode.RESOURCE_EXHAUSTED,
    StorageFull.code: StatusCode.RESOURCE_EXHAUSTED,
    errors.TryLater.code: StatusCode.UNAVAILABLE,
    errors.Unavailable.code: StatusCode.UNAVAILABLE,
    errors.ShuttingDown.code: StatusCode.UNAVAILABLE,
    StoreUnavailable.code: StatusCode.UNAVAILABLE,
    errors.ModelNotFetched.code: StatusCode.UNAVAILABLE,
    errors.ModelUnavailable.code: StatusCode.FAILED_PRECONDITION,
    errors.OutOfMemory.code: StatusCode.RESOURCE_EXHAUSTED,
    errors.GenerationFailed.code: StatusCode.INTERNAL,
    errors.InvalidOutput.code: StatusCode.INTERNAL,
    errors.WorkerCrashed.code: StatusCode.INTERNAL,
    errors.TimedOut.code: StatusCode.DEADLINE_EXCEEDED,
    errors.DeadlineExceeded.code: StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled.code: StatusCode.CANCELLED,
    errors.EaselError.code: StatusCode.INTERNAL,
}

_SETTINGS = "settings."
_FIELDS = {
    "id": "job_id",
    "n": "count",
    "num_inference_steps": f"{_SETTINGS}steps",
    "controlnet_conditioning_scale": "control.controlnet_conditioning_scale",
    "control_guidance_start": "control.control_guidance_start",
    "control_guidance_end": "control.control_guidance_end",
    **{
        name: _SETTINGS + name
        for name in (
            "width",
            "height",
            "guidance_scale",
            "seed",
            "style",
            "negative_prompt",
            "true_cfg_scale",
            "sampler",
            "strength",
            "preset",
            "output_format",
            "output_compression",
            "metadata",
            "upscale",
            "upscaler",
            "loras",
            "priority",
            "timeout",
            "previews",
        )
    },
}
"""Where the messages have what is at fault; the others stand at the top, under the same name."""


def status_of(error: errors.EaselError) -> grpc.Status:
    """Code, sentence, and as details `ErrorInfo`, a violation of a field, seconds to wait."""
    code = CODES.get(error.code, StatusCode.INTERNAL)
    about = {"param": error.param} if error.param else {}
    details: list[Message] = [ErrorInfo(reason=error.code, domain=DOMAIN, metadata=about)]
    if error.param and isinstance(error, errors.InvalidRequest):
        field = _FIELDS.get(error.param, error.param)
        violation = BadRequest.FieldViolation(field=field, description=error.message)
        details.append(BadRequest(field_violations=[violation]))
    # Clients take it as advice to ask again by themselves: not where that may take until midnight.
    passing = (errors.Unavailable, errors.ModelNotFetched)
    if isinstance(error, passing) and not isinstance(error, errors.QuotaSpent):
        details.append(RetryInfo(retry_delay=Duration(seconds=error.retry_after)))
    number: int = code.value[0]
    return rpc_status.to_status(
        Status(code=number, message=error.message, details=[_packed(one) for one in details])
    )


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
