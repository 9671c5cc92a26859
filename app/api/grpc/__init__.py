"""The door that speaks gRPC. Nothing here is imported unless the door is wanted: see docs/grpc.md."""

from __future__ import annotations

import os

# Before gRPC is loaded: its C core writes to standard error by itself, in lines that are not the log's.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
