"""What agents can do here, as it is told to them."""

from __future__ import annotations

from typing import Any

from mcp_types import Tool, ToolAnnotations

Json = dict[str, Any]

_PIXELS = {"type": "string", "description": 'Width x height, such as "512x512"; else the model\'s.'}

_WISH: Json = {
    "prompt": {"type": "string", "description": "What the picture shows."},
    "negative_prompt": {"type": "string", "description": "What it must not show."},
    "model": {"type": "string", "description": "An id of list_models; else the server's choice."},
    "size": _PIXELS,
    "n": {"type": "integer", "minimum": 1, "description": "How many pictures."},
    "seed": {"type": "integer", "minimum": 0, "description": "The same seed draws the same."},
    "num_inference_steps": {"type": "integer", "minimum": 1, "description": "More take longer."},
    "guidance_scale": {"type": "number", "description": "How strictly to obey the prompt."},
    "sampler": {"type": "string", "description": "One of the model's samplers."},
    "style": {"type": "string", "description": "Words around the prompt, such as vivid."},
    "output_format": {"enum": ["png", "jpeg", "webp"], "description": "png if not given."},
}

_BEFORE: Json = {
    "image": {"type": "string", "description": "The picture to begin with, in base64."},
    "image_id": {"type": "string", "description": "Or one that was drawn here, by its id."},
    "mask": {"type": "string", "description": "In base64: paint only where this is white."},
    "strength": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "0 keeps the picture, 1 keeps nothing of it.",
    },
}

_JOB = {"type": "string", "description": "The id that it has at every door."}

_DRAWN: Json = {
    "type": "object",
    "properties": {
        "job_id": {"type": "string"},
        "model": {"type": "string"},
        "size": {"type": "string"},
        "images": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "image_id": {"type": "string"},
                    "seed": {"type": "integer"},
                    "media_type": {"type": "string"},
                },
                "required": ["image_id", "seed", "media_type"],
            },
        },
    },
    "required": ["job_id", "model", "size", "images"],
}


def _taking(properties: Json, *required: str) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)

TOOLS = [
    Tool(
        name="generate_image",
        title="Draw a picture",
        description="Draw pictures from words. Tells how far it is, and answers with the pictures.",
        input_schema=_taking(_WISH, "prompt"),
        output_schema=_DRAWN,
        annotations=_ADDS,
    ),
    Tool(
        name="edit_image",
        title="Draw a picture anew",
        description="Draw anew from a picture: all of it, or where a mask is white.",
        input_schema=_taking({**_WISH, **_BEFORE}, "prompt"),
        output_schema=_DRAWN,
        annotations=_ADDS,
    ),
    Tool(
        name="watch_job",
        title="Wait for a picture",
        description="Follow a job of any door to its end, and answer with its pictures.",
        input_schema=_taking({"job_id": _JOB}, "job_id"),
        output_schema=_DRAWN,
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
    ),
    Tool(
        name="cancel_job",
        title="Draw no further",
        description="Cancel a job of any door; one that has ended stays as it is.",
        input_schema=_taking({"job_id": _JOB}, "job_id"),
        annotations=ToolAnnotations(read_only_hint=False, idempotent_hint=True),
    ),
    Tool(
        name="list_models",
        title="What can be drawn with",
        description="The models, with what each can do, its defaults and limits.",
        input_schema=_taking({}),
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
    ),
]

FIELDS = {tool.name: frozenset(tool.input_schema["properties"]) for tool in TOOLS}
"""Which arguments a tool takes."""
