"""What the OpenAPI document says of the routes: their answers, all their statuses, their forms.

Handlers write their bodies by hand, so their shapes are told here, for readers and for the tests that
hold real answers against them. A handler takes what it needs with `**answers(...)`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypedDict

import msgspec
from litestar import Router
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import (
    License,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
)
from litestar.openapi.spec.encoding import Encoding
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition
from pydantic import BaseModel

from app.api._shapes import ErrorEnvelope
from app.domain.access import Access

# -- statuses --------------------------------------------------------------------------------------

_ERRORS = {
    400: "A value, a name or the body itself cannot be used; `param` names the field.",
    401: "No key was sent, or none that is good here.",
    403: "The key may not do this, or the request comes from where none may come from.",
    404: "There is no such model, job or picture.",
    413: "The body is larger than the server allows.",
    415: "The body is not of the content type that this route takes.",
    422: "The Idempotency-Key stands for another request, or somebody cancelled the job.",
    429: "The queue is full, or the key has had its share; nothing was drawn. "
    "`retry-after` says when to come again.",
    500: "Drawing failed, or the server made a mistake.",
    503: "The server is going away, or the device has no room for this request.",
    504: "Drawing took longer than the server allows, or its client.",
}

BODY = (400, 413, 415)
"""Of a route that reads a body."""

SUBMITS = (*BODY, 404, 429, 503)
"""Of a route that takes a job."""

WAITS = (*SUBMITS, 422, 504)
"""Of a route that answers when the job has ended."""


# -- what is no JSON -------------------------------------------------------------------------------


def _text(description: str, **more: Any) -> Schema:
    return Schema(type=OpenAPIType.STRING, description=description, **more)


EVENTS = {"text/event-stream": _text("Server-sent events; the stream ends by itself.")}
PICTURE = {
    media_type: Schema(type=OpenAPIType.STRING, content_media_type=media_type)
    for media_type in ("image/png", "image/jpeg", "image/webp")
}

_COUNT = Schema(type=OpenAPIType.INTEGER, minimum=0)

JOB_HEADERS = {
    "x-easel-job": OpenAPIHeader(
        schema=_text("The id of the job, as `/jobs/{job_id}` knows it."), required=True
    ),
    "x-easel-ignored": OpenAPIHeader(schema=_text("Names of given fields that mean nothing here.")),
    "x-easel-gpu-seconds": OpenAPIHeader(
        schema=_text("Seconds that a device worked for it.", pattern=r"^[0-9]+\.[0-9]{3}$")
    ),
}
RATE_HEADERS = {
    "x-ratelimit-limit-requests": OpenAPIHeader(schema=_COUNT),
    "x-ratelimit-remaining-requests": OpenAPIHeader(schema=_COUNT),
}
"""Of routes that count the requests of a key, where it has a limit."""
REPLAYED = {
    "idempotent-replayed": OpenAPIHeader(
        schema=_text("The answer is that of an earlier, equal request.", enum=["true"])
    )
}

IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    param_in="header",
    required=False,
    schema=_text("Requests with one key are drawn once.", pattern=r"^[\x21-\x7e]{1,255}$"),
)
LAST_EVENT_ID = Parameter(
    name="Last-Event-ID",
    param_in="header",
    required=False,
    schema=_text("The last event that was seen.", pattern=r"^[0-9]{1,9}$"),
)

_REQUEST_ID = OpenAPIHeader(
    schema=_text("The client's own `x-request-id`, or a new one."), required=True
)
_SECONDS = Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=59)
_RETRY_AFTER = OpenAPIHeader(schema=_SECONDS, required=True)
_RETRY_PERHAPS = OpenAPIHeader(
    schema=_SECONDS, description="Sent where the same request may work later."
)

_SHOULD_RETRY = OpenAPIHeader(
    schema=_text("Sent when drawing time was spent: do not repeat it.", enum=["false"])
)


# -- what handlers take ----------------------------------------------------------------------------


class Answers(TypedDict):
    """Keywords of a Litestar handler."""

    responses: dict[int, ResponseSpec]
    operation_class: type[Operation]
    opt: dict[str, Any]


def answers(
    body: Any,
    *errors: int,
    access: Access,
    status: int = 200,
    also: dict[str, Schema] | None = None,
    headers: dict[str, OpenAPIHeader] | None = None,
    parameters: tuple[Parameter, ...] = (),
    form: type[BaseModel] | None = None,
    failing: dict[int, type[msgspec.Struct]] | None = None,
) -> Answers:
    """What a handler answers: `status`, as JSON of the type `body` or as `also` says by media type,
    or one of `errors` (500 may always be, and what a refused caller gets). `access` is what the route
    asks for; one that may be too busy counts the requests of a key. `failing` are statuses with bodies
    of their own, `form` is what the text fields of a multipart body must be.
    """
    counts = 429 in errors
    errors = (*errors, 403) if access == "public" else (*errors, 401, 403, 503)
    responses = {
        code: ResponseSpec(ErrorEnvelope, generate_examples=False, description=_ERRORS[code])
        for code in sorted({*errors, 500})
    }
    for code, kind in {**({status: body} if body else {}), **(failing or {})}.items():
        responses[code] = ResponseSpec(
            kind, generate_examples=False, description="Done." if code == status else "Not now."
        )

    @dataclass
    class Documented(Operation):
        def __post_init__(self) -> None:
            told: dict[str, OpenAPIResponse] = {}
            for code, given in (self.responses or {}).items():
                if not isinstance(given, OpenAPIResponse) or int(code) not in {*responses, status}:
                    continue  # Litestar's own idea of a 400 has another body
                told[code] = given
                given.headers = {"x-request-id": _REQUEST_ID}
                if counts:
                    given.headers |= RATE_HEADERS
                if code == "429":
                    given.headers["retry-after"] = _RETRY_AFTER
                if code == "503" and 503 not in (failing or {}):
                    given.headers["retry-after"] = _RETRY_PERHAPS
                if code.startswith("5") and int(code) not in (failing or {}):
                    given.headers["x-should-retry"] = _SHOULD_RETRY
                if code == str(status):
                    given.headers |= headers or {}
                    given.description = "Done."
                    content = (given.content or {}) if body else {}
                    more = {kind: OpenAPIMediaType(schema) for kind, schema in (also or {}).items()}
                    given.content = {**content, **more}
            self.responses = {code: told[code] for code in sorted(told)}
            self.parameters = [*(self.parameters or ()), *parameters] or None
            if form is not None:
                self.request_body = _form(form)

    opt = {"access": access, "counts": counts}
    return {"responses": responses, "operation_class": Documented, "opt": opt}


class BodySchemas(OpenAPISchemaPlugin):
    """Bodies as pydantic tells them: Litestar's own reader loses the limits of what may be null."""

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        return isinstance(value, type) and issubclass(value, BaseModel)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        registry = schema_creator.schema_registry
        kept: Schema = registry.get_schema_for_field_definition(field_definition)
        told = _schema(_told(field_definition.annotation))
        for field in fields(Schema):
            setattr(kept, field.name, getattr(told, field.name))
        kept.title = field_definition.annotation.__name__
        return registry.get_reference_for_field_definition(field_definition) or kept


def _told(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a body, with what it refers to in its place."""
    whole = kind.model_json_schema()
    known = whole.pop("$defs", {})

    def inlined(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return inlined(known[node["$ref"].rpartition("/")[2]])
            return {key: inlined(value) for key, value in node.items()}
        return [inlined(value) for value in node] if isinstance(node, list) else node

    told: dict[str, Any] = inlined(whole)
    return told


def _schema(given: dict[str, Any]) -> Schema:
    """The same, from JSON Schema without references."""
    known: dict[str, Any] = {name: given[name] for name in given.keys() & _SAME_NAMES}
    if "type" in given:
        known["type"] = OpenAPIType(given["type"])
    if "properties" in given:
        known["properties"] = {name: _schema(one) for name, one in given["properties"].items()}
        known["additional_properties"] = given.get("additionalProperties")
    if "anyOf" in given:
        known["any_of"] = [_schema(one) for one in given["anyOf"]]
    if "items" in given:
        known["items"] = _schema(given["items"])
    return Schema(**known)


_SAME_NAMES = {"default", "description", "enum", "maximum", "minimum", "pattern", "required"}


def _form(kind: type[BaseModel]) -> RequestBody:
    """A multipart body: the fields of `kind` as text, one picture, and a mask perhaps."""
    given = _told(kind)
    properties: dict[str, Reference | Schema] = {
        name: _field(field) for name, field in given["properties"].items()
    }
    properties["image"] = _text("A PNG, JPEG or WebP; also as `image[]`.", format="binary")
    properties["mask"] = _text(
        "A picture; where its alpha is 0, it is drawn anew.", format="binary"
    )
    properties["control_image"] = _text(
        "The picture of `control`, if it is not in there.", format="binary"
    )
    schema = Schema(
        type=OpenAPIType.OBJECT,
        title=kind.__name__,
        description=kind.__doc__,
        properties=properties,
        required=[*given.get("required", ()), "image"],
    )
    picture = Encoding(content_type="image/png, image/jpeg, image/webp")
    files = ("image", "mask", "control_image")
    media = OpenAPIMediaType(schema, encoding=dict.fromkeys(files, picture))
    return RequestBody({"multipart/form-data": media}, required=True)


def _field(given: dict[str, Any]) -> Schema:
    """One field, from JSON Schema. A form has no null: what is not given is left out."""
    kinds = [kind for kind in given.get("anyOf", [given]) if kind["type"] != "null"]
    return _schema(kinds[0])


def openapi_config(version: str) -> OpenAPIConfig:
    """What the document says of the whole."""
    return OpenAPIConfig(
        title="Easel",
        version=version,
        summary="A self-hosted image API.",
        description=(
            "OpenAI's Images API in front of Stable Diffusion and Flux, with honest progress. "
            "Every error has one envelope, and every answer an `x-request-id`. Fields that are "
            'null or "" count as not given, and unknown fields are ignored.'
        ),
        license=License(name="Apache License 2.0", identifier="Apache-2.0"),
        use_handler_docstrings=True,
        # As data only: the pages that could show it load their scripts from elsewhere.
        openapi_router=Router(
            "/schema", route_handlers=[], include_in_schema=False, opt={"access": "any"}
        ),
        render_plugins=[JsonRenderPlugin(path=["/openapi.json", "/"]), YamlRenderPlugin()],
    )
