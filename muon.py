"""Muon, an optimizer that needs far fewer steps than Adam."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # outputs whose directions are told apart: all of a layer's would take three times the work, to no gain


class Muon(torch.optim.Optimizer):
    """Momentum whose steps have singular values of about 1. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/

    The gradient of a weight, as a matrix of outputs by inputs, is large in a few directions and small in all
    others, and so are Adam's steps. Muon's go as far in each direction: all are learned at once. A step moves a
    unit's output by about `lr`, however many inputs it has, so that one rate suits layers of all sizes.

    A vector (a bias, BatchNorm's) stands for the diagonal of a matrix: its singular values become 1 as their signs.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient by one step."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["momentum"])
        return loss

    def _move(self, parameter: Tensor, rate: float, momentum: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        update = parameter.grad.lerp(average, momentum)  # Nesterov's
        if update.ndim > 1:
            columns = update.movedim(1, -1)  # their order doesn't matter; this one is channels_last's own
            matrix = columns.flatten(1)
            rows, inputs = matrix.shape
            blocks = rows // BLOCK if rows % BLOCK == 0 else 1
            update = orthogonalised(matrix.reshape(blocks, -1, inputs)).reshape(columns.shape).movedim(-1, 1)
            rate *= max(1, rows / inputs) ** 0.5  # with more outputs than inputs, each still moves as far
        else:
            update = update.sign()
        parameter.sub_(update, alpha=rate)


def orthogonalised(matrices: Tensor, steps: int = 3) -> Tensor:
    """Matrices (..., m, n) with their singular vectors kept, and their singular values made about 1 (0.7 to 1.2)
    where they weren't tiny beside the largest.

    These are Newton and Schulz's iterations with Jordan's coefficients. They run on the Gram matrix (m, m), which
    is far smaller than a convolution's weights.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT, steps).mT
    gram = matrices @ matrices.mT
    norm = torch.linalg.matrix_norm(gram, keepdim=True).clamp(min=1e-30)  # at least the largest value's square
    gram /= norm
    product = None
    for _ in range(steps):
        polynomial = -4.7750 * gram + 2.0315 * gram @ gram
        polynomial.diagonal(dim1=-2, dim2=-1).add_(3.4445)
        product = polynomial if product is None else polynomial @ product
        gram = polynomial @ gram @ polynomial
    return (product / norm.sqrt()) @ matrices
