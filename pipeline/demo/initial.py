"""Initial weights that hold an induction circuit, so that copying is learned in minutes, not in hours.

Rules: what is set here depends on torch's seeded generator alone, and training may change all of it.

Lookup needs heads that look a fixed number of tokens back, and after them heads that match what those found
(Olsson et al., 2022, arXiv:2209.11895). Grown from noise the pair appears late and suddenly; it is the idea of
mimetic initialization (Trockman and Kolter, 2023, arXiv:2305.09828; 2024, arXiv:2410.11135) to start with it:
- embeddings take one half of the residual stream and share one direction, which position-only attention needs
  in a model without biases;
- heads of the first layer turn that direction, through the rotary embedding, into looking back, and each writes
  into a part of the stream of its own;
- heads of the second layer compare such a part between tokens: the question's item finds the list's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import LlamaForCausalLM

from pipeline.demo.recipe import Shape

LOOK_BACK = (2, 3)  # tokens from a price's first and second digit back to its item
SHARED = 4.0  # length of what all embeddings share; what is their own has sqrt(hidden)
SHARPNESS = 6.0  # gives the wanted token some 5 nats more attention than its neighbour
FREQUENCIES = 8  # the fastest rotations, which tell neighbours apart
MATCH = 1.0  # scales queries and keys of the second layer; equal items score some 4 nats


def is_prepared(name: str) -> bool:
    """True for the parameters that hold the circuit: queries and keys of the first two layers."""
    return any(f".layers.{layer}.self_attn.{part}_proj." in name for layer in (0, 1) for part in "qk")


@dataclass(frozen=True)
class Stream:
    """Orthogonal parts of the residual stream: (hidden, width) each, of length 1 a column."""

    embedding: Tensor
    found: tuple[Tensor, ...]

    @property
    def shared(self) -> Tensor:
        """The direction all embeddings share, (hidden)."""
        return self.embedding[:, 0]


def _stream(shape: Shape) -> Stream:
    basis = torch.linalg.qr(torch.randn(shape.hidden, shape.hidden)).Q
    own = shape.hidden - len(LOOK_BACK) * shape.head_dim
    first, *rest = basis.split([own, *(shape.head_dim for _ in LOOK_BACK)], dim=1)
    return Stream(first, tuple(rest))


def _embeddings(count: int, stream: Stream) -> Tensor:
    hidden, width = stream.embedding.shape
    own: Tensor = normalize(torch.randn(count, width - 1)) * hidden**0.5
    return own @ stream.embedding[:, 1:].T + SHARED * stream.shared


def _looking_back(shape: Shape, theta: float, tokens: int) -> tuple[Tensor, Tensor]:
    """A query and a key, (head_dim) each, whose score peaks where the key stands `tokens` earlier."""
    half = shape.head_dim // 2
    turns = tokens * theta ** (-torch.arange(FREQUENCIES) / half)
    query, key = torch.zeros(2, shape.head_dim)
    key[:FREQUENCIES] = SHARPNESS
    query[:FREQUENCIES] = SHARPNESS * turns.cos()
    query[half : half + FREQUENCIES] = -SHARPNESS * turns.sin()
    return query, key


@torch.no_grad()
def prepare(model: LlamaForCausalLM, shape: Shape) -> None:
    """Set embeddings and attention of a fresh model in place; a model of one layer only looks back."""
    stream, width = _stream(shape), shape.head_dim
    embeddings = model.model.embed_tokens.weight
    embeddings.copy_(_embeddings(len(embeddings), stream))
    look, *rest = (layer.self_attn for layer in model.model.layers)
    theta = model.config.rope_parameters["rope_theta"]
    for group, (tokens, found) in enumerate(zip(LOOK_BACK, stream.found, strict=True)):
        head = group * (shape.heads // shape.kv_heads)
        query, key = _looking_back(shape, theta, tokens)
        rows, kv_rows = slice(head * width, (head + 1) * width), slice(group * width, (group + 1) * width)
        look.q_proj.weight[rows] = torch.outer(query, stream.shared / SHARED)
        look.k_proj.weight[kv_rows] = torch.outer(key, stream.shared / SHARED)
        look.v_proj.weight[kv_rows] = torch.randn(width, shape.hidden) / shape.hidden**0.5
        look.o_proj.weight[:, rows] = found
        for match in rest[:1]:
            match.q_proj.weight[rows] = MATCH * found.T
            match.k_proj.weight[kv_rows] = MATCH * found.T
            match.v_proj.weight[kv_rows] = torch.randn(width, shape.hidden) / shape.hidden**0.5
            match.o_proj.weight[:, rows] = torch.randn(shape.hidden, width) / shape.hidden**0.5
