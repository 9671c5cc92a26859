"""Easel: one gateway for Stable Diffusion and Flux that speaks the OpenAI Images API."""

__version__ = "0.1.0"
