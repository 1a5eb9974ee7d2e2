"""Muon: momentum whose update is made orthogonal, for matrices between layers.

Rules: all arithmetic is f32, because `torch.optim.Muon` computes in bf16, forty times slower on CPUs without
bf16 instructions; otherwise it is the published method: K. Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values moved near 1, by a quintic Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrix.size(0) > matrix.size(1)
    norm: Tensor = torch.linalg.matrix_norm(matrix)
    x = (matrix.T if tall else matrix) / (norm + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.T if tall else x


class Muon:
    """Nesterov momentum, then an orthogonal update as long as its learning rate, scaled up for tall matrices."""

    def __init__(self, matrices: Sequence[Tensor], rates: Sequence[float], momentum: float = 0.95) -> None:
        """Take over matrices of shape (outputs, inputs), each with its learning rate."""
        self.matrices = tuple(matrices)
        self.rates = tuple(rates)
        self.momentum = momentum
        self.buffers = tuple(torch.zeros_like(matrix) for matrix in self.matrices)

    @torch.no_grad()
    def step(self, pace: float) -> None:
        """Update every matrix from its gradient, at `pace` times the learning rate."""
        for matrix, buffer, lr in zip(self.matrices, self.buffers, self.rates, strict=True):
            assert matrix.grad is not None
            buffer.lerp_(matrix.grad, 1 - self.momentum)
            update = orthogonalized(matrix.grad.lerp(buffer, self.momentum))
            scale = max(1.0, matrix.size(0) / matrix.size(1)) ** 0.5
            matrix.add_(update, alpha=-lr * pace * scale)
