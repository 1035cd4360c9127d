"""Construction of a :class:`~vitctl.training.session.Session` from settings."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Container
from pathlib import Path

import torch
from torch import nn

from vitctl import devices
from vitctl.config import TrainConfig, fit_to_images, fitting_note
from vitctl.data import AUGMENTATIONS, AugmentationEntry
from vitctl.data.augment import Augment
from vitctl.data.batches import Extras, Normalize, TrainBatches
from vitctl.data.dataset import Dataset, Splits, load_dataset, split
from vitctl.data.duplicates import describe_equal_images
from vitctl.data.reading import AUTO, FULL
from vitctl.errors import RequestError
from vitctl.models import build_model, find_model
from vitctl.models.count import activation_floats, forward_cost, most_images
from vitctl.models.heads import freeze_backbone
from vitctl.observer import SILENT, Observer
from vitctl.optim.build import build_optimizer
from vitctl.optim.flat import flatten_parameters
from vitctl.registry import load_target, lookup
from vitctl.training.compiling import compile_network
from vitctl.training.ema import WeightAverage
from vitctl.training.loss import balanced_weights
from vitctl.training.preflight import check_length, locate_weights
from vitctl.training.session import Session, given_length
from vitctl.units import plural

CACHE_FLOATS = 1 << 22
"""Maximum number of floats in the largest activation of a micro-batch on CPU: 16 MiB of fp32.

Measured on Zen 3 and Zen 4 cores with 32 MiB of last-level cache: larger micro-batches exceed the cache, and much
smaller ones do not keep the cores busy. It is a constant, as micro-batches affect the last bits of a result.
"""

ELONGATED_SHARE = 0.1
"""Share of training images far from square above which :func:`describe_reading` warns."""

DEVICE_EVAL_BATCH = 1000
"""Maximum number of images per forward pass in evaluation on an accelerator."""

DEVICE_FLOATS = 1 << 28
"""Maximum number of floats in the largest activation of such a forward pass: 1 GiB of fp32."""

INIT_PIXELS = 5000 * 32**2
"""Maximum number of pixels, over all images at the network's size, for a network's ``data_init``."""


def open_session(
    config: TrainConfig,
    observer: Observer = SILENT,
    *,
    pretrained: bool = True,
    resumed: bool = False,
    precision: str | None = None,
    data: tuple[Dataset, Splits] | None = None,
    free: Container[str] = (),
) -> Session:
    """Build everything that a run needs, and compile the network with ``--compile``.

    Args:
        config: the settings.
        observer: is notified of downloads, decoding and compilation.
        pretrained: whether to load pretrained weights if the settings request them, and otherwise to run the network's
            ``data_init``; False if a checkpoint replaces the weights or they do not matter.
        resumed: whether the caller restores a checkpoint, and then checks the length and compiles.
        precision: precision in which a run continues; None for that of the settings.
        data: data to use instead of those that the settings name.
        free: settings that may be fitted to the number of training images; see :func:`vitctl.config.free_settings`.

    Raises:
        RequestError: device, data, network or weights are not available as requested.
    """
    device = devices.resolve_device(config.device)
    precision = precision or devices.resolve_precision(config.precision, device, find_model(config.net).bf16)
    devices.prepare(device, config.threads, config.precision)
    weights = locate_weights(config) if pretrained else None
    dataset, splits = data or open_data(config, observer)
    if config.value_range == AUTO:
        config = dataclasses.replace(config, value_range=dataset.value_range)
    if not resumed:
        describe_reading(config, dataset, observer)
    config = fitted(config, splits, free, observer)
    in_chans, num_classes = dataset.train.images.shape[1], len(dataset.classes)
    extras = batch_extras(config, dataset, splits, device)

    def build() -> nn.Module:
        return build_model(
            config.net, config.net_options, img_size=config.size, in_chans=in_chans, num_classes=num_classes
        )

    torch.manual_seed(config.seed)
    model = build()
    loaded = initialise(model, config, dataset, splits, weights) if pretrained else None
    if config.freeze_backbone:
        freeze_backbone(model, config.net)
    model = model.to(device)
    batchnorm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    micro_batch, eval_batch = batch_pieces(config, device, build, in_chans, batchnorm)
    batches = train_batches(config, splits, extras, device, drop_single=batchnorm)
    optimizer = build_optimizer(
        config.opt,
        config.opt_options,
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        decay_all=config.decay_all,
        layer_decay=config.layer_decay,
        lr_scale=config.lr_scale,
    )
    flat = None if devices.policy_of(device).foreach else flatten_parameters(optimizer)
    session = Session(
        config=config,
        device=device,
        dataset=dataset,
        splits=splits,
        batches=batches,
        normalize=make_normalize(config, dataset.mean, dataset.std, device),
        model=model,
        average=WeightAverage(model, config.ema, flat) if config.ema else None,
        optimizer=optimizer,
        flat=flat,
        micro_batch=micro_batch,
        eval_batch=eval_batch,
        cost=forward_cost(build, in_chans, config.size),
        class_weights=class_weights(config, splits, num_classes, device),
        precision=precision,
        scaler=devices.make_scaler(device, precision),
        pretrained=loaded,
    )
    if resumed:
        return session
    if given_length(config, session.steps_per_epoch) is not None:
        check_length(session)
    if config.compile:
        compile_network(session, observer.message)
    return session


def initialise(
    model: nn.Module, config: TrainConfig, dataset: Dataset, splits: Splits, weights: Path | None
) -> str | None:
    """Load the pretrained ``weights`` into a new network, or initialise it from training images.

    Returns:
        What was loaded, as a message, or None.
    """
    if weights is None:
        init_from_data(model, config, dataset, splits)
        return None
    from vitctl.models.pretrained import load_pretrained  # imports timm, which takes seconds

    return load_pretrained(
        model,
        config.net,
        config.net_options,
        weights,
        img_size=config.size,
        in_chans=dataset.train.images.shape[1],
        classes=dataset.classes,
    )


def init_from_data(model: nn.Module, config: TrainConfig, dataset: Dataset, splits: Splits) -> None:
    """Initialise a new network from training images, if its row has a ``data_init``.

    The images depend only on the data set, its split and ``--size``: they are spread evenly over the training images,
    as these may be sorted by class, and are at most as many as have :data:`INIT_PIXELS`.
    """
    entry = find_model(config.net)
    if not entry.data_init:
        return
    index = splits.train.index
    count = min(len(index), max(1, INIT_PIXELS // config.size**2))
    chosen = index[torch.arange(count) * len(index) // count]
    normalize = Normalize(dataset.mean, dataset.std, config.size, torch.device("cpu"))
    with devices.one_thread():
        load_target(entry.data_init)(model, normalize(splits.train.examples.images.index_select(0, chosen)))


def load_data(
    config: TrainConfig, *, data_dir: str | None = None, download: bool = True, observer: Observer = SILENT
) -> Dataset:
    """Return the data set of a run.

    Args:
        config: the run's settings.
        data_dir: where the data are now; None for where they were.
        download: whether to download what is missing.
        observer: receives progress and warnings.

    Raises:
        RequestError: the data are not available as requested.
    """
    return load_dataset(
        config.dataset,
        data_dir=data_dir or config.data_dir,
        size=config.size,
        skip_bad_images=config.skip_bad_images,
        observer=observer,
        download=download,
        labels=config.labels,
        test_fraction=config.test_fraction,
        fit=config.fit,
        value_range=config.value_range,
    )


def open_data(config: TrainConfig, observer: Observer = SILENT) -> tuple[Dataset, Splits]:
    """Return the data set and its splits, and warn of equal images in two parts or classes.

    Raises:
        RequestError: the data are not available as requested, or have equal images with ``--strict-data``.
    """
    dataset = load_data(config, observer=observer)
    if equal := describe_equal_images(dataset):
        if config.strict_data:
            raise RequestError(f"--strict-data: {equal}", hint="delete one image of each pair, or remove --strict-data")
        observer.message(f"warning: {equal}")
    splits = split(
        dataset,
        val=config.val,
        val_fraction=config.val_fraction,
        split_seed=config.split_seed,
        holdout_by=config.holdout_by,
        limit_train=config.limit_train,
        limit_test=config.limit_test,
    )
    return dataset, splits


def fitted(config: TrainConfig, splits: Splits, free: Container[str], observer: Observer) -> TrainConfig:
    """Return the settings fitted to the number of training images, and report what changed."""
    images = len(splits.train)
    after = fit_to_images(config, images, free)
    if after != config:
        observer.message(fitting_note(config, after, images))
    return after


def describe_reading(config: TrainConfig, dataset: Dataset, observer: Observer) -> None:
    """Report the value range, and warn if ``--fit crop`` cuts off much of many training images."""
    traits = dataset.traits
    if traits is None:
        return
    if traits.deep and dataset.value_range != FULL:
        observer.message(f"grey values are read by --value-range {dataset.value_range}")
    if config.fit == "crop" and traits.elongated > ELONGATED_SHARE * traits.images:
        observer.message(
            f"warning: --fit crop cuts off over 40 % of {traits.elongated:,} of "
            f"{plural(traits.images, 'training image')}; use --fit pad or squeeze"
        )


def train_batches(
    config: TrainConfig, splits: Splits, extras: Extras, device: torch.device, *, drop_single: bool
) -> TrainBatches:
    """Return the training batches of a run.

    Raises:
        RequestError: the images are too small for the padding of ``--aug``.
    """
    augmentation, options = AUGMENTATIONS[config.aug], config.aug_options
    height, width = splits.train.examples.images.shape[2:]
    padding = int(options.get("padding", -1))
    if padding >= min(height, width):
        raise RequestError(
            f"--aug {config.aug}:padding={padding} needs images of more than {plural(padding, 'pixel')} a side",
            hint=f"use padding={min(height, width) - 1} or less: these are {width} x {height}",
        )
    return TrainBatches(
        splits.train.examples.images,
        splits.train.examples.labels,
        splits.train.index,
        batch_size=config.bs * config.accumulate,
        device=device,
        seed=config.seed,
        augment=augmentation.crop,
        flip=config.flips,
        padding=None if padding == -1 else padding,
        reflect=options.get("padding_mode") == "reflect",
        alternate=options.get("flip") == "alternate",
        drop_single=drop_single,
        extras=extras,
    )


def class_weights(config: TrainConfig, splits: Splits, classes: int, device: torch.device) -> torch.Tensor | None:
    """Return the weight of each class in the training loss, float32 ``[classes]``, or None for equal weights."""
    if config.class_weights == "none":
        return None
    return balanced_weights(splits.train.examples.labels[splits.train.index], classes).to(device)


def make_normalize(
    config: TrainConfig, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> Normalize:
    """Return the conversion of uint8 images to the network's input, with its size and memory layout."""
    policy = devices.policy_of(device)
    channels_last = policy.channels_last and policy.backend in find_model(config.net).channels_last
    return Normalize(mean, std, config.size, device, channels_last)


def batch_extras(config: TrainConfig, dataset: Dataset, splits: Splits, device: torch.device) -> Extras:
    """Return the augmentation of a batch besides crop and flip.

    Raises:
        RequestError: unknown augmentation, or mixup or CutMix with images of only one class.
    """
    augmentation: AugmentationEntry = lookup(AUGMENTATIONS, config.aug, "--aug")
    labels = splits.train.examples.labels[splits.train.index]
    for name, alpha in (("mixup", config.mixup), ("cutmix", config.cutmix)):
        if alpha and bool((labels == labels[0]).all()):
            raise RequestError(
                f"--{name} {alpha:g} mixes classes, but all training images ({len(labels)}) are of class "
                f"{dataset.classes[int(labels[0])]!r}",
                hint=f"use --{name} 0, or train on images of more classes",
            )
    channels, height, width = splits.train.examples.images.shape[1:]
    policy = None
    if augmentation.target:
        policy = Augment(augmentation.policy((height, width), config.aug_options), (channels, height, width), device)
    return Extras(
        policy=policy,
        erase=config.erase,
        cutout=config.cutout,
        colour=tuple(round(255 * mean) for mean in dataset.mean),
        mixup=config.mixup,
        cutmix=config.cutmix,
        classes=len(dataset.classes),
    )


def batch_pieces(
    config: TrainConfig, device: torch.device, build: Callable[[], nn.Module], in_chans: int, batchnorm: bool
) -> tuple[int, int]:
    """Return the number of images per forward pass in training and in evaluation.

    With ``--micro-batch auto``, training on CPU uses the largest power of two for which no activation has more than
    :data:`CACHE_FLOATS` floats, but at least 8. Training on an accelerator uses the full batch, and so do networks with
    BatchNorm, whose statistics are those of the batch. Both are at most what the device computes correctly at once.

    Raises:
        RequestError: the device does not compute an image, or a batch that BatchNorm needs at once, correctly.
    """
    most = correct_images(config, device, build, in_chans)
    if batchnorm and most < config.bs:
        raise RequestError(
            f"--bs {config.bs}: {device} computes at most {most} images at once correctly, too few for BatchNorm",
            hint=f"use --bs {most}, or --device cpu",
        )
    train, evaluation = preferred_pieces(config, device, build, in_chans, batchnorm)
    pieces = -(-config.bs // min(train, most))  # of about equal size, as a device may be slow with each new shape
    return (train if train <= most else -(-config.bs // pieces)), min(evaluation, most)


def correct_images(config: TrainConfig, device: torch.device, build: Callable[[], nn.Module], in_chans: int) -> int:
    """Return the most images that the device computes correctly at once, in training and in evaluation.

    Raises:
        RequestError: not even one.
    """
    policy = devices.policy_of(device)
    most = policy.longest_batch or sys.maxsize
    if policy.longest_reduction is not None:
        most = min(most, most_images(build, in_chans, config.size, policy.longest_reduction))
    if not most:
        raise RequestError(
            f"--net {config.net} is too large for {device} at --size {config.size}: PyTorch adds up at most "
            f"{policy.longest_reduction:,} products correctly there",
            hint="use --device cpu, or a smaller --size",
        )
    return most


def preferred_pieces(
    config: TrainConfig, device: torch.device, build: Callable[[], nn.Module], in_chans: int, batchnorm: bool
) -> tuple[int, int]:
    """Return the fastest number of images per forward pass in training and in evaluation."""
    widest = activation_floats(build, in_chans, config.size)
    one_pass = devices.policy_of(device).one_pass
    if one_pass:
        fitting = min(DEVICE_EVAL_BATCH, max(8, DEVICE_FLOATS // max(1, widest)))
    else:
        fitting = max(8, 1 << int(math.log2(max(1, CACHE_FLOATS // widest))))
    if config.micro_batch != "auto":
        given = int(config.micro_batch)
        # Evaluation keeps no activations and can use larger batches, but --micro-batch may be small for lack of memory.
        return min(given, config.bs), min(fitting, 4 * given) if one_pass else fitting
    return config.bs if batchnorm or one_pass else min(fitting, config.bs), fitting
