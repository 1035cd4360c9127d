"""The CNN of the CIFAR-10 speed records, and the step that trains it, in plain PyTorch.

Network, optimizers and augmentation are those of airbench94_muon (Jordan 2024,
https://github.com/KellerJordan/cifar10-airbench), which reaches 94 % in 8 epochs at batch size 2,000. Differences: the batch
is smaller if fewer images are seen, with Muon's rate in proportion to its cube root; the forward pass is in bf16 under
autocast where the records keep fp16 weights; a batch is flipped and cropped by a single gather.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CROP = 2
"""Maximum shift of an image, in pixels, by which it is padded with its reflection."""

MEAN = 255 * torch.tensor((0.4914, 0.4822, 0.4465))
"""CIFAR-10's mean color."""
STD = 255 * torch.tensor((0.2470, 0.2435, 0.2616))
"""Standard deviation of CIFAR-10's colors."""

BATCHES = (125, 250, 500, 1000, 2000)
"""Batch sizes to choose from."""
LEAST_STEPS = 200
"""Steps of the records' run; the batch size is the largest that allows as many."""


class Group(nn.Sequential):
    """Two 3x3 convolutions that start as the identity, with pooling after the first."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__(
            _conv(width_in, width),
            nn.MaxPool2d(2),
            _norm(width),
            nn.GELU(),
            _conv(width, width),
            _norm(width),
            nn.GELU(),
        )


def _conv(width_in: int, width: int) -> nn.Conv2d:
    conv = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:width_in])
    return conv


def _norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


class RecordsCnn(nn.Module):
    """A fixed 2x2 whitening convolution, three groups, and a linear head.

    Maps normalised images, float ``[B, 3, 32, 32]``, to logits ``[B, 10]``.

    Args:
        widths: channels of the groups.
    """

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.groups = nn.Sequential(*itertools.starmap(Group, itertools.pairwise((24, *widths))))
        self.head = nn.Linear(widths[-1], 10, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(self.whiten(x)))  # [B, C, 3, 3]
        return self.head(F.max_pool2d(x, 3).flatten(1)) / self.head.in_features

    @torch.no_grad()
    def set_whitening(self, images: Tensor) -> None:
        """Set the first convolution to the eigenvectors of the patches of ``images`` and their negatives."""
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 12).double()  # [B * 31 * 31, 12]
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


class Muon:
    """Muon for convolutions, with weights that are scaled to a fixed norm before each update.

    Args:
        weights: the convolutions' weights.
        lr: learning rate.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float) -> None:
        self.weights, self.lr = weights, lr
        self.averages = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update the weights at the learning rate times ``factor``."""
        for weight, average in zip(self.weights, self.averages, strict=True):
            assert weight.grad is not None
            average.mul_(0.6).add_(weight.grad)
            update = orthogonal(weight.grad.add(average, alpha=0.6).flatten(1))
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            weight.add_(update.view_as(weight), alpha=-self.lr * factor)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return roughly the nearest matrix with orthogonal rows, by three Newton-Schulz steps."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    for _ in range(3):
        product = x @ x.T
        x = torch.addmm(x, torch.addmm(product, product, product, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


class RecordsData:
    """Training images as :class:`RecordsLoop` needs them.

    Args:
        images: uint8 ``[N, 3, 32, 32]``.
        labels: int64 ``[N]``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous()  # [N, 32, 32, 3]
        self.labels = labels
        self.first = self.normalized(images[:5000])

    def normalized(self, images: Tensor) -> Tensor:
        """Return uint8 images ``[B, 3, H, W]`` as normalised floats, channels-last."""
        return images.permute(0, 2, 3, 1).float().sub_(MEAN).div_(STD).permute(0, 3, 1, 2)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of shifted images, without end; each image is mirrored in every other epoch."""
        count, side = len(self.labels), torch.arange(32)
        mirrored = torch.rand(count) < 0.5
        while True:
            for index in torch.randperm(count)[: count // size * size].split(size):
                down, right = torch.randint(-CROP, CROP + 1, (2, size, 1))
                rows = reflected(down + side)
                columns = reflected(right + torch.where(mirrored[index, None], 31 - side, side))
                images = self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]]  # [B, 32, 32, 3]
                yield self.normalized(images.permute(0, 3, 1, 2)), self.labels[index]
            mirrored = ~mirrored


def reflected(pixels: Tensor) -> Tensor:
    """Return the pixels, from 0 to 31, that padding by reflection shows at positions outside of an image."""
    return 31 - (31 - pixels.abs()).abs()


class RecordsLoop:
    """A run that trains the network.

    Args:
        data: the training images.
        seed: seeds weights, order and augmentation.
        precision: ``fp32`` or ``bf16``.
        batch: images per step.
        steps: length of the run, over which learning rates fall to zero.
        widths: channels of the groups.
    """

    def __init__(
        self, data: RecordsData, *, seed: int, precision: str, batch: int, steps: int, widths: tuple[int, int, int]
    ) -> None:
        torch.manual_seed(seed)
        self.data, self.steps, self.done, self.half = data, steps, 0, precision == "bf16"
        self.model = RecordsCnn(widths)
        self.model.set_whitening(data.first)
        self.model.to(memory_format=torch.channels_last)
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        biases = [parameter for name, parameter in trained.items() if name.startswith("groups") and parameter.ndim == 1]
        decay = 2e-6 * batch
        self.rates = (0.053, 0.053, 0.67)
        groups = zip(([trained["whiten.bias"]], biases, [trained["head.weight"]]), self.rates, strict=True)
        self.sgd = torch.optim.SGD(
            [{"params": group, "lr": lr, "weight_decay": decay / lr} for group, lr in groups],
            momentum=0.85,
            nesterov=True,
            fused=True,
        )
        convs = [parameter for parameter in trained.values() if parameter.ndim == 4]
        self.muon = Muon(convs, lr=0.24 * (batch / 2000) ** (1 / 3))
        self.batches = data.batches(batch)

    def step(self) -> None:
        """Take a step."""
        images, labels = next(self.batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits = self.model(images)
        F.cross_entropy(logits.float(), labels, label_smoothing=0.2, reduction="sum").backward()
        progress = self.done / self.steps
        whitening = max(0.0, 1 - progress * 8 / 3)  # its bias is trained for three of eight epochs
        for group, lr, factor in zip(
            self.sgd.param_groups, self.rates, (whitening, 1 - progress, 1 - progress), strict=True
        ):
            group["lr"] = lr * factor
        self.sgd.step()
        self.muon.step(1 - progress)
        self.model.zero_grad()
        self.done += 1

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of uint8 images ``[B, 3, 32, 32]``."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return self.model(self.data.normalized(images)).float()
