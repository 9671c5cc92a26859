"""What clients of the Images API send, as JSON or as a form.

The fields and what is done with each are told in docs/openai-compatibility.md, which a test holds
against this file.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal, Self, TypeVar

from litestar import Request
from litestar.datastructures import UploadFile
from litestar.exceptions import HTTPException
from msgspec.structs import replace
from pydantic import Field, ValidationError, model_validator

from app.api._control import IMAGE, gathered, with_picture
from app.api._fields import PictureFields, refused
from app.api._pictures import checked, upright_size
from app.domain.errors import InvalidRequest
from app.domain.request import Arguments
from app.recent_requests import Attempt

IGNORED = (
    "user",
    "safety_identifier",
    "moderation",
    "complexity",
    "input_fidelity",
    "frame_count",
    "frame_duration_ms",
)
"""Fields of OpenAI's that cannot matter here; taken without a word."""

REFUSED = {
    "svg": "No model here draws SVG.",
    "markup": "Marking up an image is not supported; use mask.",
}
"""Fields that would change the meaning of a request if they were ignored."""

B = TypeVar("B", bound=PictureFields)


class GenerationBody(PictureFields):
    """`POST /v1/images/generations`: OpenAI's fields, and Easel's own beside them."""

    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    stream_progress: bool | None = None
    quality: str | None = None
    on_hang_up: str | None = Field(default=None, pattern=r"^(cancel|finish|grace:\d{1,5})$")

    @model_validator(mode="after")
    def _nothing_that_is_refused(self) -> Self:
        for name, why in REFUSED.items():
            if name in self.unknown:
                raise InvalidRequest(why, param=name)
        return self

    @property
    def ignored(self) -> list[str]:
        """Names of fields that mean nothing here: told in the answer's `x-easel-ignored`."""
        return [name for name in self.unknown if name not in IGNORED]

    def to_arguments(self, efforts: dict[str, float] | None = None) -> Arguments:
        """`efforts` is what each `quality` multiplies the model's default steps by."""
        effort = (efforts or {}).get(self.quality or "auto")
        previews = self.partial_images if self.stream else None
        return replace(super().to_arguments(), effort=effort, previews=previews)


class EditBody(GenerationBody):
    """The text fields of `POST /v1/images/edits`."""

    @model_validator(mode="after")
    def _a_prompt(self) -> Self:
        if not self.prompt.strip():
            raise InvalidRequest(
                "A prompt must hold at least one visible character.", param="prompt"
            )
        return self


class VariationBody(GenerationBody):
    """The text fields of `POST /v1/images/variations`: there is no prompt."""

    prompt: str = ""


class Upload:
    """A form, read: its text fields and its pictures, whatever order and names they came in."""

    def __init__(
        self,
        texts: dict[str, str],
        images: list[bytes],
        mask: bytes | None,
        control: bytes | None = None,
    ) -> None:
        self.texts, self.images, self.mask, self.control = texts, images, mask, control

    @classmethod
    async def read(cls, request: Request[Any, Any, Any]) -> Self:
        """Raises InvalidRequest, and HTTPException for what is no form."""
        if request.content_type[0] != "multipart/form-data":
            raise HTTPException(status_code=415, extra={"send": "multipart/form-data"})
        try:
            form = await request.form()
        except (UnicodeDecodeError, LookupError) as error:  # a charset that does not fit, or exist
            raise HTTPException(status_code=400) from error
        texts: dict[str, str] = {}
        images: list[bytes] = []
        mask: bytes | None = None
        control: bytes | None = None
        for name, value in form.multi_items():
            if name in ("image", "image[]", "images", "images[]"):
                images.append(await _picture(value, "image"))
            elif name == "mask":
                mask = await _picture(value, "mask")
            elif name == "control_image":
                control = await _picture(value, IMAGE)
            elif isinstance(value, str):
                texts[name] = value
            else:
                raise InvalidRequest(
                    "Files may be sent as image, mask and control_image.", param="image"
                )
        if len(images) != 1:
            raise InvalidRequest(
                f"Send exactly one image; {len(images)} came. No model here combines several.",
                param="image",
            )
        return cls(texts, images, mask, control)

    def body(self, kind: type[B]) -> B:
        """The text fields; in a form every value is text, so "2" is a number. Raises InvalidRequest."""
        try:
            return kind.model_validate(gathered(self.texts), strict=False)
        except ValidationError as error:
            raise refused(error) from error

    def onto(self, arguments: Arguments) -> Arguments:
        """The arguments with the pictures, and the size that they suggest."""
        image = self.images[0]
        size = upright_size(image, "image")
        given = replace(arguments, image=image, mask_image=self.mask, image_size=size)
        return with_picture(given, self.control) if self.control else given

    @property
    def digest(self) -> str:
        """Of what was sent, not of how: boundaries and order differ between equal attempts."""
        whole = hashlib.sha256()
        for name in sorted(self.texts):
            whole.update(f"{name}\0{self.texts[name]}\0".encode())
        for picture in (*self.images, self.mask or b"", self.control or b""):
            whole.update(hashlib.sha256(picture).digest())
        return whole.hexdigest()


async def _picture(value: object, param: str) -> bytes:
    """A picture by what its bytes say; the part's type and file name are not believed."""
    if not isinstance(value, UploadFile):
        raise InvalidRequest(f"{param} must be a file.", param=param)
    return checked(await value.read(), param)


def attempt_of(request: Request[Any, Any, Any], digest: str, owner: str) -> Attempt:
    """How this request presents itself. Raises InvalidRequest for a key that cannot be one."""
    key = request.headers.get("idempotency-key")
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise InvalidRequest(
            "An Idempotency-Key is 1 to 255 visible ASCII characters.", param="Idempotency-Key"
        )
    retries = request.headers.get("x-stainless-retry-count", "0")
    is_retry = re.fullmatch(r"[1-9][0-9]{0,2}", retries) is not None
    return Attempt(owner, f"{request.url.path} {digest}", is_retry, key)
