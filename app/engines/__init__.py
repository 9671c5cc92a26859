"""Where requests become pictures: the only package that may import torch, diffusers or PIL."""

import os

# Both are read when diffusers and transformers are imported, so they are set before any engine is.
# No pipeline code from a model folder ever runs, whatever its index says.
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
# Advice on optional packages is not for our log; errors come as exceptions anyway.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
