"""OpenAI's Images API: generations, edits, variations, models; and its twin that streams progress."""

from app.api.openai.images import HANDLERS as _IMAGES
from app.api.openai.images import UPLOADS
from app.api.openai.models import HANDLERS as _MODELS

HANDLERS = [*_IMAGES, *_MODELS]

__all__ = ["HANDLERS", "UPLOADS"]
