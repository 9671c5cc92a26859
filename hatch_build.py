"""Makes Python of the gRPC door's .proto, for wheels and for `pip install -e .` alike."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "app/api/grpc"


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = Path(self.root, FOLDER)
        status = protoc.main(
            [
                "protoc",
                f"-I{folder}",
                f"-I{files('grpc_tools') / '_proto'}",
                f"--python_out={folder}",
                f"--pyi_out={folder}",
                "starweave.proto",
            ]
        )
        if status != 0:
            raise RuntimeError(f"protoc ended with {status}")
