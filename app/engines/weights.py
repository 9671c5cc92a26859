"""From a model card to a diffusers pipeline, taking nothing that could run code."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from app.domain.control import PARAM
from app.domain.errors import EaselError, ModelUnavailable, OutOfMemory
from app.domain.model_card import ModelCard
from app.domain.model_source import is_single_file
from app.engines.single_file import TRANSFORMER, load_single_file
from app.engines.weight_bytes import precision_for
from app.model_files.selection import CONFIG, variant_of

# Progress bars are for notebooks.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()

_LIBRARIES = {"diffusers", "transformers", "stable_diffusion", None}
"""Where an index may say that parts come from; the third is diffusers' own, for safety checkers."""

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_pipeline(
    card: ModelCard,
    kind: type[DiffusionPipeline],
    device: str,
    *,
    in_turn: bool = False,
    quantised: Collection[str] = (),
) -> Any:
    """The pipeline of class `kind` in the card's folder or file, on `device`, ready to draw; or, where
    its parts are to come there `in_turn`, in the machine's memory. Those that are `quantised` have
    eight bits for each weight of their linear layers.

    Raises:
        ModelUnavailable: the folder is missing, incomplete, damaged, of another class, or holds
            anything but safetensors.
        OutOfMemory: the device has no room for the weights.
    """
    single = is_single_file(card.source)
    folder = Path(card.base if single else card.source)
    _check_folder(card, folder, kind)
    try:
        dtype = dtype_for(card, device)
        rest = partial(_rest, card, folder, dtype, quantised)
        if single:
            pipeline = load_single_file(card, kind, dtype, _index(card, folder), rest)
            if TRANSFORMER in quantised:
                _quantise(pipeline.transformer)
        else:
            pipeline = kind.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                **rest(),
            )
        pipeline.to("cpu" if in_turn else device)
    except EaselError:
        raise
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"The device has no room for the weights of model {card.id}.") from error
    except ImportError as error:
        # Processors of pictures or films, of Flux.2 dev and Qwen-Image-Edit, want torchvision.
        raise ModelUnavailable(
            f"Model {card.id} needs a package that is not installed; see docs/add-a-model.md."
        ) from error
    except Exception as error:
        # Loaders raise whatever their file formats raise (SafetensorError, OSError, KeyError …).
        raise ModelUnavailable(f"The weights of model {card.id} cannot be loaded.") from error
    return pipeline


def load_network(card: ModelCard, kind: type[Any], dtype: torch.dtype, device: str) -> Any:
    """The control network of class `kind` in the card's folder, on `device`.

    Raises ModelUnavailable and OutOfMemory, as `load_pipeline` does, with the control as `param`.
    """
    folder, whole = Path(card.source), f"Control network {card.id}"
    try:
        _check_files(whole, folder)
        if json.loads((folder / CONFIG).read_bytes()).get("_class_name") != kind.__name__:
            raise ModelUnavailable(f"{whole} is not a {kind.__name__} but another kind.")
        network, told = kind.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **_variant([variant_of(_names(folder))]),
        )
        if told["missing_keys"]:
            raise ModelUnavailable(
                f"The weights of {whole[0].lower()}{whole[1:]} are not complete."
            )
        return network.to(device).eval()
    except torch.OutOfMemoryError as error:
        text = f"The device has no room for the weights of control network {card.id}."
        raise OutOfMemory(text, param=PARAM) from error
    except EaselError as error:
        error.param = PARAM
        raise
    except Exception as error:
        # Loaders raise whatever their file formats raise (SafetensorError, OSError, KeyError …).
        text = f"The weights of control network {card.id} cannot be loaded."
        raise ModelUnavailable(text, param=PARAM) from error


def sibling(pipeline: Any, kind: type[DiffusionPipeline]) -> Any:
    """The same components under another class: no weight is copied."""
    if any(getattr(part, "is_quantized", False) for part in pipeline.components.values()):
        # `from_pipe` casts, which quantised weights refuse.
        known = inspect.signature(kind.__init__).parameters
        return kind(**{name: part for name, part in pipeline.components.items() if name in known})
    # Without a dtype, it would cast the shared weights to float32.
    return kind.from_pipe(pipeline, dtype=pipeline.dtype)


def dtype_for(card: ModelCard, device: str) -> torch.dtype:
    """What `weight_bytes.precision_for` says, as torch calls it."""
    return _DTYPES[precision_for(card, device)]


def _check_folder(card: ModelCard, folder: Path, kind: type[DiffusionPipeline]) -> None:
    parts = _index(card, folder)
    if parts.get("_class_name") != kind.__name__:
        raise ModelUnavailable(f"Model {card.id} is not a {kind.__name__} but another kind.")
    for name, source in parts.items():
        if isinstance(source, list) and (not source or source[0] not in _LIBRARIES):
            raise ModelUnavailable(f"Model {card.id} names parts of a library that is not trusted.")
        # transformers would make an empty tokenizer of an absent one, and the prompt would not act.
        if isinstance(source, list) and any(source) and not (folder / name).is_dir():
            raise ModelUnavailable(f"Model {card.id} lacks a part that its index names.")
    _check_files(f"Model {card.id}", folder)


def _check_files(whole: str, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix.lower() in (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl"):
            raise ModelUnavailable(
                f"{whole} holds files that could run code; only safetensors are loaded."
            )


def _index(card: ModelCard, folder: Path) -> dict[str, Any]:
    try:
        parts = json.loads((folder / "model_index.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"The folder of model {card.id} has no usable index.") from error
    if not isinstance(parts, dict):
        raise ModelUnavailable(f"The folder of model {card.id} has no usable index.")
    return parts


def _rest(
    card: ModelCard, folder: Path, dtype: torch.dtype, quantised: Collection[str]
) -> dict[str, Any]:
    """What `from_pretrained` has to be told, and those parts that it would not check or quantise."""
    loaded = _text_encoders(card, folder, dtype, quantised)
    if TRANSFORMER in quantised and not is_single_file(card.source):
        loaded[TRANSFORMER] = _quantised_transformer(card, folder / TRANSFORMER, dtype)
    return {**_variant(_variants(folder)), **loaded}


def _quantised_transformer(card: ModelCard, folder: Path, dtype: torch.dtype) -> Any:
    kind: Any = getattr(diffusers, str(_index(card, folder.parent)[TRANSFORMER][1]), None)
    if not (isinstance(kind, type) and hasattr(kind, "from_pretrained")):
        raise ModelUnavailable(f"The transformer of model {card.id} is of an unknown kind.")
    return kind.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=_in_eight_bits(diffusers),
        use_safetensors=True,
        local_files_only=True,
        **_variant([variant_of(_names(folder))]),
    )


def _in_eight_bits(library: Any) -> Any:
    """How diffusers or transformers are told. Raises ImportError where torchao is not installed."""
    from torchao.quantization import Int8WeightOnlyConfig

    return library.TorchAoConfig(Int8WeightOnlyConfig())


def _quantise(part: Any) -> None:
    """The same to what is loaded: of a single file, diffusers takes it for done (0.42)."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(part, Int8WeightOnlyConfig())
    part.is_quantized = True


def _text_encoders(
    card: ModelCard, folder: Path, dtype: torch.dtype, quantised: Collection[str]
) -> dict[str, Any]:
    """The parts that transformers loads, complete: it fills absent weights with random numbers."""
    loaded: dict[str, Any] = {}
    for name, source in _index(card, folder).items():
        if not isinstance(source, list) or source[0] != "transformers":
            continue
        kind = getattr(transformers, source[1], None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            config = _in_eight_bits(transformers) if name in quantised else None
            whole: Any = kind  # the library is not typed
            loaded[name], told = whole.from_pretrained(
                folder / name,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                quantization_config=config,
                **_variant([variant_of(_names(folder / name))]),
            )
            if told["missing_keys"]:
                raise ModelUnavailable(f"The weights of model {card.id} are not complete.")
    return loaded


def _variants(folder: Path) -> list[str]:
    """What the parts of the folder come in, each "" or "fp16"."""
    return [variant_of(_names(part)) for part in folder.iterdir() if part.is_dir()]


def _variant(variants: Iterable[str]) -> dict[str, str]:
    """How loaders are told to take half precision where there is no other."""
    return {"variant": variant} if (variant := max(variants, default="")) else {}


def _names(part: Path) -> set[str]:
    return {path.name for path in part.iterdir()}
