"""Rotary positions: the angle of a pair of head dimensions grows with the token's place in its sequence.

One table of cosines and sines for all layers, `rotary_table`; `rotate` applies it to queries and keys, so that their
products depend on distances alone.
"""

from __future__ import annotations

import math

import torch

from lingua_synth.model.args import ModelArgs, head_dim


def rotary_table(args: ModelArgs) -> torch.Tensor:
    """Cosine and sine of t * f_k for position t and pair k: fp32 [max_seqlen, head_dim / 2, 2], on the CPU.

    f_k = rope_theta ^ (-2k / head_dim), stretched by `stretch` when rope_scaling_factor is not 1.
    """
    width = head_dim(args)
    with torch.device("cpu"):
        frequencies = 1.0 / (args.rope_theta ** (torch.arange(0, width, 2)[: width // 2].float() / width))
        if args.rope_scaling_factor != 1:
            frequencies = stretch(frequencies, args)
        angles = torch.outer(torch.arange(args.max_seqlen), frequencies).float()
        return torch.view_as_real(torch.polar(torch.ones_like(angles), angles))


def stretch(frequencies: torch.Tensor, args: ModelArgs) -> torch.Tensor:
    """Llama 3.1's frequencies for contexts longer than `rope_original_seqlen`, the length they were trained at.

    By how often a pair turns within that length, r = length * f / 2 pi: f for r > high, f / factor for r < low, and in
    between s f + (1 - s) f / factor with s = (r - low) / (high - low). As in the model's reference code, which calls
    the same thing by wavelengths; `rope_type: llama3` in transformers.
    """
    low, high = args.rope_low_freq_factor, args.rope_high_freq_factor
    turns = args.rope_original_seqlen * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / args.rope_scaling_factor


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs (x[2k], x[2k+1]) of x [B, T, H, C] by `table` [T, C/2, 2]; computed in fp32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    table = table[:, None]
    if torch.compiler.is_compiling():
        # The compiler fuses real arithmetic and leaves complex products alone; without it one complex product is the
        # shorter way (one CPU core, 2 x 512 x 8 x 64, forward and backward: 0.5 ms against 5 ms).
        even, odd = pairs.unbind(-1)
        cosine, sine = table.unbind(-1)
        turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    return turned.flatten(-2).to(x.dtype)
