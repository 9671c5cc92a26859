"""What is wrong with a folder is told before a worker stumbles over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from app.model_files.folder import missing, wrong_file
from app.settings import BUNDLED
from tests.shelves import UNET

WEIGHTS = Path(UNET)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(BUNDLED / "sketch", tmp_path / "model")


def shard(folder: Path) -> tuple[Path, Path]:
    """Cut the UNet's weights in two, as large models come."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    stem = folder / "unet" / "diffusion_pytorch_model"
    pieces = []
    places: dict[str, str] = {}
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        piece = stem.with_name(f"{stem.name}-0000{number}-of-00002.safetensors")
        save_file({name: tensors[name] for name in some}, piece, metadata={"format": "pt"})
        places |= dict.fromkeys(some, piece.name)
        pieces.append(piece)
    (folder / WEIGHTS).unlink()
    index = stem.with_name(f"{stem.name}.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return pieces[0], pieces[1]


def test_whole_folders_lack_nothing(folder: Path) -> None:
    assert missing(folder) == ""
    shard(folder)
    assert missing(folder) == ""


def cut(length: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(path.read_bytes()[:length])

    return damage


def no_shard_index(folder: Path) -> None:
    shard(folder)
    next((folder / "unet").glob("*.index.json")).unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "folder does not exist"),
        (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "cannot be used"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "part tokenizer is missing"),
        (lambda folder: (folder / WEIGHTS).unlink(), "part unet has no weights"),
        (cut(-1), "cut short"),
        (cut(4), "cut short"),
        (cut(0), "cut short"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 100), "damaged"),
        (lambda folder: shard(folder)[1].unlink(), "lacks some of its shards"),
        (no_shard_index, "shards without an index"),
    ],
)
def test_what_is_missing_is_told(folder: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(folder)
    assert told in missing(folder)
    assert str(folder) not in missing(folder)


def test_weights_from_elsewhere_are_not_missed(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert missing(folder, ("unet",)) == ""


def test_single_files_are_looked_at_too(folder: Path, tmp_path: Path) -> None:
    assert wrong_file(folder / WEIGHTS) == ""
    assert "exist" in wrong_file(tmp_path / "none.safetensors")
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF" + b"\0" * 20)
    assert wrong_file(gguf) == ""
    gguf.write_bytes(b"PK\3\4")
    assert "damaged" in wrong_file(gguf)
