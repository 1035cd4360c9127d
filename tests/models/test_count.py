"""Costs of networks that are small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl.models import build_model, find_model
from vitctl.models.count import activation_floats, count_parameters, forward_cost, matmul_lengths, most_images


class OneAttention(nn.Module):
    """Two linear layers and one attention over the pixels of a 4x4 image, as 16 tokens of width 2."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks(x.flatten(2).transpose(1, 2))[:, None]  # [B, 1, 16, 2]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 4, 10))


def test_mflop_of_a_convolution_and_a_linear_layer() -> None:
    assert forward_cost(convolution, 3, 8).mflop * 1e6 == 2 * (8 * 8 * 4 * 27 + 64 * 10)


def test_mflop_include_fused_attention() -> None:
    assert forward_cost(OneAttention, 2, 4).mflop * 1e6 == 2 * (16 * 2 * 5 * 2 + 2 * 16 * 16 * 2)


def test_shared_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert count_parameters(model) == 24
    model[1].weight = model[0].weight
    assert count_parameters(model) == 15


def test_tokens_are_the_input_of_the_first_block() -> None:
    assert forward_cost(OneAttention, 2, 4).tokens == 16
    assert forward_cost(convolution, 3, 8).tokens == 0


def test_activations_are_the_largest_output() -> None:
    assert activation_floats(convolution, 3, 8) == 4 * 8 * 8
    assert activation_floats(OneAttention, 2, 4) == 16 * 5


def test_counting_preserves_the_random_state() -> None:
    before = torch.get_rng_state()

    def build() -> nn.Module:
        model = nn.Sequential(convolution(), nn.Dropout(0.5))
        nn.init.trunc_normal_(model[0][0].weight)
        return model

    forward_cost(build, 3, 8)
    activation_floats(build, 3, 8)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("net", "most"),
    [
        ("vit_small", (32_766) // 65),  # images x tokens, in the weight gradients of linear layers
        ("mlpmixer", (32_766) // 512),  # images x channels, in those of token mixing
        ("cait_small", (32_766) // 64**2),  # images x tokens x tokens, in those of talking heads
        ("res18", 32_766),  # only the head
    ],
)
def test_the_longest_sum_of_a_matrix_product_limits_the_batch(net: str, most: int) -> None:
    entry = find_model(net)
    options = {name: option.default for name, option in entry.options.items()}

    def build() -> nn.Module:
        return build_model(net, options, img_size=32, in_chans=3, num_classes=10)

    assert most_images(build, 3, 32, 32_766) == most
    assert (max(matmul_lengths(build, 3, 32, 600)) > 32_766) == (most < 600)


def test_the_sums_of_a_linear_layer_and_attention() -> None:
    # Forward: inputs of both layers, products with keys and values. Backward: outputs, tokens and images x tokens.
    assert sorted(set(matmul_lengths(OneAttention, 2, 4, 3))) == [2, 5, 16, 48]


def test_a_single_image_may_have_too_long_sums() -> None:
    assert [most_images(OneAttention, 2, 4, longest) for longest in (15, 16, 31, 32)] == [0, 1, 1, 2]
