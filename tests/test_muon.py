"""Muon's steps against the singular value decomposition and a plain reference."""

import pytest
import torch

from muon import BLOCK, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (3, 8, 20)])
def test_orthogonalised_keeps_the_singular_vectors(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.mT @ orthogonalised(matrix) @ vh.mT  # diagonal, if the vectors are the same
    values = turned.diagonal(dim1=-2, dim2=-1)
    assert (turned - torch.diag_embed(values)).abs().max() < 1e-4
    assert values.min() > 0.65 and values.max() < 1.25


def test_orthogonalised_of_nothing_is_nothing():
    assert not orthogonalised(torch.zeros(4, 6)).any()


def reference(weights, gradients, lr, momentum=0.9):
    """Nesterov's momentum, each step's matrix orthogonalised, and a vector's signs."""
    average = torch.zeros_like(weights)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        step = (1 - momentum) * gradient + momentum * average
        if step.ndim > 1:
            wide = step.flatten(1)
            step = orthogonalised(wide).view_as(step) * max(1, len(wide) / wide.shape[1]) ** 0.5
        else:
            step = step.sign()
        weights = weights - lr * step
    return weights


def steps(weights, gradients, lr, layout=torch.contiguous_format):
    parameter = torch.nn.Parameter(weights.clone().contiguous(memory_format=layout))
    optimizer = Muon([parameter], lr)
    for gradient in gradients:
        parameter.grad = gradient.contiguous(memory_format=layout)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (12, 1, 1, 1), (6, 10, 2, 2), (7,)])
def test_steps_are_those_of_the_plain_reference(shape):
    torch.manual_seed(0)
    weights, gradients = torch.randn(shape), torch.randn(4, *shape)
    torch.testing.assert_close(
        steps(weights, gradients, 0.1), reference(weights, gradients, 0.1), atol=1e-4, rtol=1e-3
    )


def test_the_memory_format_changes_nothing():
    torch.manual_seed(0)
    weights, gradients = torch.randn(8, 4, 3, 3), torch.randn(3, 8, 4, 3, 3)
    torch.testing.assert_close(
        steps(weights, gradients, 0.1),
        steps(weights, gradients, 0.1, torch.channels_last),
        atol=1e-4,
        rtol=1e-3,
    )


def test_a_large_layer_moves_in_blocks_of_outputs():
    torch.manual_seed(0)
    weights, gradient = torch.randn(2 * BLOCK, 3, 3, 3), torch.randn(1, 2 * BLOCK, 3, 3, 3)
    halves = [reference(weights[part], gradient[:, part], 0.1) for part in (slice(BLOCK), slice(BLOCK, None))]
    scale = max(1, 2 * BLOCK / 27) ** 0.5 / max(1, BLOCK / 27) ** 0.5  # that of the whole layer
    expected = weights + scale * (torch.cat(halves) - weights)
    torch.testing.assert_close(steps(weights, gradient, 0.1), expected, atol=1e-3, rtol=1e-3)


def test_it_goes_on_from_its_state():
    torch.manual_seed(0)
    weights, gradients = torch.randn(8, 4, 3, 3), torch.randn(4, 8, 4, 3, 3)
    whole = steps(weights, gradients, 0.1)
    first = torch.nn.Parameter(weights.clone())
    optimizer = Muon([first], 0.1)
    for gradient in gradients[:2]:
        first.grad = gradient
        optimizer.step()
    second = torch.nn.Parameter(first.detach().clone())
    resumed = Muon([second], 0.5)
    resumed.load_state_dict(optimizer.state_dict())
    for gradient in gradients[2:]:
        second.grad = gradient
        resumed.step()
    assert torch.equal(second, whole)
