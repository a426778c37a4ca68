"""Muon, an optimizer that needs far fewer steps than Adam."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # outputs made orthogonal together: all of a layer's would take three times the work, to no gain


class Muon(torch.optim.Optimizer):
    """Momentum whose steps have singular values of about 1. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/

    The gradient of a weight, as a matrix of outputs by inputs, is large in a few orthogonalize and small in all
    others, and so are Adam's steps. Muon's go as far in each direction: all are learned at once. A step moves a
    unit's output by about `lr`, however many inputs it has, so that one rate suits layers of all sizes.

    A vector (a bias, BatchNorm's) stands for the diagonal of a matrix: what becomes of it are its signs.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient by one step."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            if all(parameter.device.type == "cpu" for parameter in given):  # it likes one at a time, in its cache
                together = [[parameter] for parameter in given]
            else:  # a GPU likes few launches
                together = [[p for p in given if p.ndim > 1], [p for p in given if p.ndim < 2]]
            for parameters in filter(None, together):
                self._move(parameters, group["lr"], group["momentum"])
        return loss

    def _move(self, parameters: list[Tensor], rate: float, momentum: float) -> None:
        averages = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            averages.append(state["momentum_buffer"])
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov's
        torch._foreach_sub_(parameters, orthogonalize(updates), alpha=rate)


def orthogonalize(updates: Sequence[Tensor]) -> list[Tensor]:
    """Updates of weights with all their singular values made about 1, or those of vectors as their signs."""
    if updates[0].ndim < 2:
        return torch._foreach_sign(updates)
    columns = [update.movedim(1, -1) for update in updates]  # channels_last's own order; any would do
    matrices = []
    for column in columns:
        blocks = len(column) // BLOCK if len(column) % BLOCK == 0 else 1
        matrices.append(column.reshape(blocks, len(column) // blocks, -1))
    found = []
    for column, turned in zip(columns, newton_schulz(matrices), strict=True):
        ratio = len(column) ** 2 / column.numel()  # of outputs to inputs: with more, each moves as far
        turned = turned * ratio**0.5 if ratio > 1 else turned
        found.append(turned.reshape(column.shape).movedim(-1, 1))
    return found


def newton_schulz(matrices: Sequence[Tensor], steps: int = 3) -> list[Tensor]:
    """Stacks of matrices (B, m, n) with their singular vectors kept, and their singular values made about 1 (0.7 to
    1.2) where they weren't tiny beside the largest.

    These are Newton and Schulz's iterations with Jordan's coefficients. They run on the Gram matrices (m, m), which
    are far smaller than a convolution's weights, and on all those of a size at once, which is what a GPU likes.
    """
    wide = [stack.mT if stack.shape[1] > stack.shape[2] else stack for stack in matrices]
    found = list(wide)
    for size in {stack.shape[1] for stack in wide}:
        numbers = [number for number, stack in enumerate(wide) if stack.shape[1] == size]
        gram = torch.cat([wide[number] @ wide[number].mT for number in numbers])
        norm = torch.linalg.matrix_norm(gram, keepdim=True).clamp(min=1e-30)  # at least the largest value's square
        gram /= norm
        product = None
        for _ in range(steps):
            polynomial = -4.7750 * gram + 2.0315 * gram @ gram
            polynomial.diagonal(dim1=-2, dim2=-1).add_(3.4445)
            product = polynomial if product is None else polynomial @ product
            gram = polynomial @ gram @ polynomial
        product /= norm.sqrt()
        for number, factor in zip(numbers, product.split([len(wide[number]) for number in numbers]), strict=True):
            found[number] = factor @ wide[number]
    return [
        turned if turned.shape == stack.shape else turned.mT for turned, stack in zip(found, matrices, strict=True)
    ]
