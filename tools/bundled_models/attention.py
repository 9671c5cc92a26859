"""Attention written out for training on CPUs.

The fused kernel's backward pass takes a third of a training step there; two matrix products and a
softmax run on the CPU's matrix units and take a tenth.
"""

import torch
import torch.nn.functional as F


def written_out_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Same call and result as torch's `scaled_dot_product_attention`, without dropout."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-1, -2))
    if is_causal:
        shape = (query.shape[-2], key.shape[-2])
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(scores.softmax(-1).to(value.dtype), value)


def write_out_attention() -> None:
    """From here on, every model in this process attends with the function above."""
    F.scaled_dot_product_attention = written_out_attention
