"""Muon, an optimizer that needs far fewer steps than Adam."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 256  # rows orthogonalized together: all of a large layer's would take three times the work, to no gain


class Muon(torch.optim.Optimizer):
    """Momentum whose updates have singular values of about 1. Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/

    A weight is a matrix of outputs by inputs. Its gradient is large in a few directions and small in all others,
    and so are Adam's updates; Muon's are equally large in each. An update changes a unit's output by about `lr`,
    however many inputs it has, so one rate suits layers of all sizes. A vector (a bias, BatchNorm's) is updated by
    its signs, and so is everything in a group with `orthogonal` False.

    `transposed` are the weights of nn.ConvTranspose2d, whose first axis is their inputs.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, *, transposed: Iterable[nn.Parameter] = ()
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.transposed = set(transposed)  # not in param_groups, so that a checkpoint's state doesn't depend on it

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameters in filter(None, ([p for p in given if p.ndim > 1], [p for p in given if p.ndim < 2])):
                for parameter in parameters:
                    if not self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
                gradients = [parameter.grad for parameter in parameters]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                updates = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov's
                if parameters[0].ndim > 1 and group.get("orthogonal", True):
                    updates = orthogonalize(updates, [parameter in self.transposed for parameter in parameters])
                else:
                    updates = torch._foreach_sign(updates)
                torch._foreach_sub_(parameters, updates, alpha=group["lr"])


def orthogonalize(updates: Sequence[Tensor], transposed: Sequence[bool]) -> list[Tensor]:
    """Updates of weights, (outputs, inputs, ...) or `transposed` (inputs, outputs, ...), as matrices whose singular
    values are about 1; those with more outputs than inputs are scaled up, so that each output changes as much."""
    rows, matrices = [], []
    for update, swap in zip(updates, transposed, strict=True):
        # A ConvTranspose2d whose stride is its kernel has (outputs, kernel) as rows, one for each value that an
        # input pixel spreads to; a Conv2d has (inputs, kernel) as columns. Channels come last, as in
        # channels_last.
        row = update.movedim(0, -1) if swap else update.movedim(1, -1)
        count = row.numel() // row.shape[-1] if swap else len(row)
        blocks = count // BLOCK if count % BLOCK == 0 else 1
        rows.append((row, count))
        matrices.append(row.reshape(blocks, count // blocks, -1))
    results = []
    for (row, count), matrix, swap in zip(rows, zeropower_via_newtonschulz(matrices), transposed, strict=True):
        ratio = count**2 / row.numel()  # outputs to inputs
        matrix = matrix * ratio**0.5 if ratio > 1 else matrix
        results.append(matrix.reshape(row.shape).movedim(-1, 0 if swap else 1))
    return results


def zeropower_via_newtonschulz(matrices: Sequence[Tensor], steps: int = 3) -> list[Tensor]:
    """Stacks of matrices (B, m, n) with their singular vectors kept, and their singular values made about 1 (0.7 to
    1.2) unless they were tiny beside the largest.

    Newton-Schulz iterations with Jordan's coefficients, on the Gram matrices (m, m), which are far smaller than a
    convolution's weights, and on all of one size at once, which takes few launches.
    """
    wide = [stack.mT if stack.shape[1] > stack.shape[2] else stack for stack in matrices]
    results = list(wide)
    for size in {stack.shape[1] for stack in wide}:
        indices = [index for index, stack in enumerate(wide) if stack.shape[1] == size]
        gram = torch.cat([wide[index] @ wide[index].mT for index in indices])
        # By the Frobenius norm, which is at least the largest value's square; by the trace first, since of small
        # gradients the Gram matrix's own squares are 0 in float32.
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].clamp(min=1e-30)
        gram /= trace
        norm = torch.linalg.matrix_norm(gram, keepdim=True).clamp(min=1e-6)
        gram /= norm
        product = None
        for step in range(steps):
            polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
            polynomial.diagonal(dim1=-2, dim2=-1).add_(3.4445)
            product = polynomial if product is None else polynomial @ product
            if step < steps - 1:
                gram = polynomial @ gram @ polynomial
        product /= (trace * norm).sqrt()
        for index, factor in zip(indices, product.split([len(wide[index]) for index in indices]), strict=True):
            results[index] = factor @ wide[index]
    return [
        result if result.shape == stack.shape else result.mT
        for result, stack in zip(results, matrices, strict=True)
    ]
