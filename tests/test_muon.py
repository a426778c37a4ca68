"""Muon's steps against the singular value decomposition and a plain reference."""

import pytest
import torch

from support.muon import BLOCK, Muon, orthogonalize, zeropower_via_newtonschulz


def test_orthogonalised_keeps_the_singular_vectors():
    torch.manual_seed(0)
    stacks = [torch.randn(shape) for shape in ((1, 16, 40), (1, 40, 16), (3, 8, 20), (2, 16, 16), (1, 16, 900))]
    for stack, found in zip(stacks, zeropower_via_newtonschulz(stacks), strict=True):
        u, _, vh = torch.linalg.svd(stack, full_matrices=False)
        turned = u.mT @ found @ vh.mT  # diagonal, if the vectors are the same
        values = turned.diagonal(dim1=-2, dim2=-1)
        assert (turned - torch.diag_embed(values)).abs().max() < 1e-4
        assert values.min() > (0.65 if stack.shape != (2, 16, 16) else 0)  # a square one has tiny values, too
        assert values.max() < 1.25


@pytest.mark.parametrize("scale", [1e-30, 1e-14, 1e-11, 1e15])
def test_orthogonalised_is_the_same_however_small_or_large_the_updates_are(scale):
    """Down to those that vanish: of 1e-13, the Gram matrix's own squares are 0 in float32."""
    stack = torch.randn(1, 16, 40, generator=torch.Generator().manual_seed(0))
    assert not zeropower_via_newtonschulz([0 * stack])[0].any()
    expected, found = (zeropower_via_newtonschulz([stack * factor])[0] for factor in (1, scale))
    if scale < 1e-15:
        assert found.abs().max() < 1
    else:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_many_updates_at_once_are_those_of_each_alone(layout):
    torch.manual_seed(0)
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (2 * BLOCK, 8, 3, 3), (16, 8, 2, 2), (1, 16, 1, 1), (16, 64, 3, 3)]
    updates = [torch.randn(shape).contiguous(memory_format=layout) for shape in shapes]
    transposed = [shape[2:] == (2, 2) for shape in shapes]
    together = orthogonalize(updates, transposed)
    for update, swap, result in zip(updates, transposed, together, strict=True):
        torch.testing.assert_close(result, orthogonalize([update], [swap])[0], atol=1e-5, rtol=1e-4)


def reference(weights, gradients, lr, momentum=0.9, transposed=False):
    """Nesterov's momentum, each update's matrix orthogonalized, and a vector's signs."""
    average = torch.zeros_like(weights)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        step = (1 - momentum) * gradient + momentum * average
        if step.ndim > 1:
            # What a layer maps one pixel to, or one window: ConvTranspose2d's weight is (inputs, outputs, 2, 2).
            matrix = step.flatten(1).mT if transposed else step.flatten(1)
            ratio = max(1, len(matrix) / matrix.shape[1])
            matrix = zeropower_via_newtonschulz([matrix[None].contiguous()])[0][0] * ratio**0.5
            step = (matrix.mT if transposed else matrix).reshape(step.shape)
        else:
            step = step.sign()
        weights = weights - lr * step
    return weights


def steps(weights, gradients, lr, layout=torch.contiguous_format, transposed=False):
    parameter = torch.nn.Parameter(weights.clone().contiguous(memory_format=layout))
    optimizer = Muon([parameter], lr, transposed=[parameter] if transposed else ())
    for gradient in gradients:
        parameter.grad = gradient.contiguous(memory_format=layout)
        optimizer.step()
    return parameter.detach()


LAYOUTS = torch.contiguous_format, torch.channels_last
CASES = [(shape, layout) for shape in [(8, 4, 3, 3), (12, 1, 1, 1), (16, 8, 2, 2)] for layout in LAYOUTS]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape, layout", [*CASES, ((7,), torch.contiguous_format)])
def test_updates_are_those_of_the_plain_reference(shape, layout, transposed):
    torch.manual_seed(0)
    weights, gradients = torch.randn(shape), torch.randn(4, *shape)
    found = steps(weights, gradients, 0.1, layout, transposed)
    torch.testing.assert_close(
        found, reference(weights, gradients, 0.1, transposed=transposed), atol=1e-4, rtol=1e-3
    )


def test_a_large_layer_moves_in_blocks_of_outputs():
    torch.manual_seed(0)
    weights, gradient = torch.randn(2 * BLOCK, 3, 3, 3), torch.randn(1, 2 * BLOCK, 3, 3, 3)
    halves = [reference(weights[part], gradient[:, part], 0.1) for part in (slice(BLOCK), slice(BLOCK, None))]
    scale = max(1, 2 * BLOCK / 27) ** 0.5 / max(1, BLOCK / 27) ** 0.5  # that of the whole layer
    expected = weights + scale * (torch.cat(halves) - weights)
    torch.testing.assert_close(steps(weights, gradient, 0.1), expected, atol=1e-3, rtol=1e-3)
