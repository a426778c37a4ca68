"""Muon's steps against the singular value decomposition and a plain reference."""

import pytest
import torch

from support.muon import BLOCK, Muon, newton_schulz, orthogonalize


def test_orthogonalised_keeps_the_singular_vectors():
    torch.manual_seed(0)
    stacks = [torch.randn(shape) for shape in ((1, 16, 40), (1, 40, 16), (3, 8, 20), (2, 16, 16), (1, 16, 900))]
    for stack, found in zip(stacks, newton_schulz(stacks), strict=True):
        u, _, vh = torch.linalg.svd(stack, full_matrices=False)
        turned = u.mT @ found @ vh.mT  # diagonal, if the vectors are the same
        values = turned.diagonal(dim1=-2, dim2=-1)
        assert (turned - torch.diag_embed(values)).abs().max() < 1e-4
        assert values.min() > (0.65 if stack.shape != (2, 16, 16) else 0)  # a square one has tiny values, too
        assert values.max() < 1.25


def test_orthogonalised_of_nothing_is_nothing():
    assert not newton_schulz([torch.zeros(1, 4, 6)])[0].any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_many_updates_at_once_turn_as_each_does(layout):
    torch.manual_seed(0)
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (2 * BLOCK, 8, 3, 3), (16, 8, 2, 2), (1, 16, 1, 1), (16, 64, 3, 3)]
    updates = [torch.randn(shape).contiguous(memory_format=layout) for shape in shapes]
    for update, turned in zip(updates, orthogonalize(updates), strict=True):
        torch.testing.assert_close(turned, orthogonalize([update])[0], atol=1e-5, rtol=1e-4)


def reference(weights, gradients, lr, momentum=0.9):
    """Nesterov's momentum, each step's matrix newton_schulz, and a vector's signs."""
    average = torch.zeros_like(weights)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        step = (1 - momentum) * gradient + momentum * average
        if step.ndim > 1:
            wide = step.flatten(1)
            step = newton_schulz([wide[None]])[0].view_as(step) * max(1, len(wide) / wide.shape[1]) ** 0.5
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
