"""Muon, an optimizer that needs far fewer steps than Adam."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


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
            matrix = update.flatten(1)
            taller = max(1, matrix.shape[0] / matrix.shape[1])  # more outputs than inputs: each moves as far
            update = orthogonalised(matrix).view_as(update).mul_(taller**0.5)
        else:
            update = update.sign()
        parameter.sub_(update, alpha=rate)


def orthogonalised(matrix: Tensor, steps: int = 3) -> Tensor:
    """A matrix (m, n) with its singular vectors kept, and its singular values made about 1 (0.7 to 1.2) where they
    weren't tiny beside the largest.

    These are Newton and Schulz's iterations with Jordan's coefficients. They run on the Gram matrix (m, m), which
    is far smaller than a convolution's weights.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T, steps).T
    gram = matrix @ matrix.T
    norm = gram.norm().clamp(min=1e-30)  # no less than the square of the largest singular value
    gram /= norm
    product = None
    for _ in range(steps):
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal().add_(3.4445)
        product = polynomial if product is None else polynomial @ product
        gram = polynomial @ gram @ polynomial
    return product @ matrix / norm.sqrt()
