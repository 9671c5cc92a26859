"""OpenAI's Images API, and beside it what streams progress and what enlarges pictures."""

from app.api.openai.images import HANDLERS as _IMAGES
from app.api.openai.images import UPLOADS as _UPLOADS
from app.api.openai.models import HANDLERS as _MODELS
from app.api.openai.upscale import UPSCALES, list_upscalers

HANDLERS = [*_IMAGES, *_MODELS, list_upscalers]
UPLOADS = [*_UPLOADS, *UPSCALES]

__all__ = ["HANDLERS", "UPLOADS"]
