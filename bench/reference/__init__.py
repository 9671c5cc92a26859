"""Other ways to serve the same pipelines, to compare with. They are no part of the server.

They run in a virtual environment of their own, made from `requirements.txt` on first use, which borrows
torch, diffusers and the rest from the project's. Each is given the models in the environment variable
REFERENCE, as JSON: by name, the diffusers pipeline, its scheduler, the folder, and constant arguments.
"""
