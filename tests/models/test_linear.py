"""The linear layer that is computed as a convolution, compared with torch's."""

import pytest
import torch
from torch import nn

from vitctl.models.linear import Linear, replace_linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(4, 7, 24), (4, 1, 24), (1, 5, 24), (6, 24), (2, 3, 4, 24)])
def test_values_and_gradients_match_torch(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 10, bias=bias)
    ours = nn.Linear(24, 10, bias=bias)
    ours.load_state_dict(plain.state_dict())
    replace_linear(ours)
    assert type(ours) is Linear
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    weights = torch.randn(*shape[:-1], 10)
    outputs = [layer(x) for layer, x in zip((plain, ours), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-5)
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-4)


def test_tokens_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution gets the tokens in a memory layout that it can use without a copy."""
    received: list[torch.Tensor] = []
    real = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, *rest: (received.append(x), real(x, *rest))[1])
    layer, tokens = Linear(24, 10).train(), torch.randn(4, 7, 24)
    result = layer(tokens)
    assert received[0].data_ptr() == tokens.data_ptr() and received[0].is_contiguous(memory_format=torch.channels_last)
    assert result.is_contiguous()


def test_evaluation_uses_the_plain_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("an exported graph would contain the convolution")

    monkeypatch.setattr(torch.nn.functional, "conv2d", never)
    Linear(24, 10).eval()(torch.randn(4, 7, 24))
    with pytest.raises(AssertionError):
        Linear(24, 10).train()(torch.randn(4, 7, 24))
