"""Conversion of weights from the original scripts: rules that map their tensor names and shapes to vitctl's.

Their modules nest ``nn.Sequential``, residual and pre-norm wrappers, so their names contain indices, which the patterns
translate. Every tensor must match a rule; none is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from vitctl.errors import RequestError
from vitctl.models import MODELS, build_model
from vitctl.models.state_files import without_prefix
from vitctl.registry import Value, first_of

Options = Mapping[str, Value]


@dataclass(frozen=True)
class Rule:
    """Conversion of the tensors of the original scripts whose full name matches a pattern.

    Attributes:
        pattern: regular expression for the name in the original scripts.
        name: name in vitctl: a template for :meth:`re.Match.expand`, or a function of the match. None drops the tensor
            if ``check`` accepts it.
        change: converts the tensor to vitctl's shape.
        check: returns whether a tensor can be dropped without loss.
    """

    pattern: str
    name: str | Callable[[re.Match[str]], str] | None
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor
    check: Callable[[Tensor], bool] = lambda tensor: True


_END = r"(weight|bias)"
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def _vit(options: Options) -> list[Rule]:
    layer = r"transformer\.layers\.(\d+)\."
    first = "head.fc1" if options.get("head_hidden") else "head"

    def rescaled(qkv: Tensor) -> Tensor:
        """Fold the scale of the products until March 2022, ``D ** -0.5`` instead of ``d ** -0.5``, into the queries."""
        rows = int(options["num_heads"]) * int(options["head_dim"])
        factor = (int(options["head_dim"]) / int(options["embed_dim"])) ** 0.5
        return torch.cat((qkv[:rows].double() * factor, qkv[rows:].double())).to(qkv.dtype)

    return [
        # Until March 2022: a layer's name has one more fn, and the head has two layers.
        Rule(rf"patch_to_embedding\.{_END}", r"patch_embed.proj.\1"),
        Rule(rf"{layer}0\.fn\.norm\.{_END}", r"blocks.\1.norm1.\2"),
        Rule(rf"{layer}0\.fn\.fn\.to_qkv\.weight", r"blocks.\1.attn.qkv.weight", rescaled),
        Rule(rf"{layer}0\.fn\.fn\.to_out\.0\.{_END}", r"blocks.\1.attn.proj.\2"),
        Rule(rf"{layer}1\.fn\.norm\.{_END}", r"blocks.\1.norm2.\2"),
        Rule(rf"{layer}1\.fn\.fn\.net\.0\.{_END}", r"blocks.\1.mlp.fc1.\2"),
        Rule(rf"{layer}1\.fn\.fn\.net\.3\.{_END}", r"blocks.\1.mlp.fc2.\2"),
        Rule(rf"mlp_head\.4\.{_END}", r"head.fc2.\1"),
        Rule("pos_embedding", "pos_embed"),
        Rule("cls_token", "cls_token"),
        Rule(rf"to_patch_embedding\.1\.{_END}", r"patch_embed.proj.\1"),
        Rule(rf"to_patch_embedding\.to_patch_tokens\.1\.{_END}", r"patch_embed.norm.\1"),
        Rule(rf"to_patch_embedding\.to_patch_tokens\.2\.{_END}", r"patch_embed.proj.\1"),
        Rule(rf"{layer}0\.norm\.(alpha|weight|bias)", r"blocks.\1.norm1.\2"),
        Rule(rf"{layer}0\.fn\.temperature", r"blocks.\1.attn.temperature"),
        Rule(rf"{layer}0\.fn\.to_qkv\.weight", r"blocks.\1.attn.qkv.weight"),
        Rule(rf"{layer}0\.fn\.to_out\.0\.{_END}", r"blocks.\1.attn.proj.\2"),
        Rule(rf"{layer}1\.norm\.(alpha|weight|bias)", r"blocks.\1.norm2.\2"),
        Rule(rf"{layer}1\.fn\.net\.0\.{_END}", r"blocks.\1.mlp.fc1.\2"),
        Rule(rf"{layer}1\.fn\.net\.3\.{_END}", r"blocks.\1.mlp.fc2.\2"),
        Rule(r"mlp_head\.0\.(alpha|weight|bias)", r"norm.\1"),
        Rule(rf"mlp_head\.1\.{_END}", rf"{first}.\1"),
    ]


def _vit_small(options: Options) -> list[Rule]:
    # The last norm is applied after pooling.
    return [Rule(rf"mlp_head\.0\.{_END}", r"fc_norm.\1"), *_vit(options)]


def _simplevit(options: Options) -> list[Rule]:
    layer = r"transformer\.layers\.(\d+)\."
    return [
        Rule(rf"to_patch_embedding\.1\.{_END}", r"patch_embed.proj.\1"),
        Rule(rf"{layer}0\.norm\.{_END}", r"blocks.\1.norm1.\2"),
        Rule(rf"{layer}0\.to_qkv\.weight", r"blocks.\1.attn.qkv.weight"),
        Rule(rf"{layer}0\.to_out\.weight", r"blocks.\1.attn.proj.weight"),
        Rule(rf"{layer}1\.net\.0\.{_END}", r"blocks.\1.norm2.\2"),
        Rule(rf"{layer}1\.net\.1\.{_END}", r"blocks.\1.mlp.fc1.\2"),
        Rule(rf"{layer}1\.net\.3\.{_END}", r"blocks.\1.mlp.fc2.\2"),
        Rule(rf"linear_head\.0\.{_END}", r"fc_norm.\1"),
        Rule(rf"linear_head\.1\.{_END}", r"head.\1"),
    ]


def _cait(options: Options) -> list[Rule]:
    rules = [
        Rule("pos_embedding", "pos_embed"),
        Rule("cls_token", "cls_token"),
        Rule(rf"to_patch_embedding\.1\.{_END}", r"patch_embed.proj.\1"),
        Rule(rf"mlp_head\.0\.{_END}", r"norm.\1"),
        Rule(rf"mlp_head\.1\.{_END}", r"head.\1"),
    ]
    for theirs, ours in (("patch_transformer", "blocks"), ("cls_transformer", "class_blocks")):
        layer = rf"{theirs}\.layers\.(\d+)\."
        rules += [
            Rule(rf"{layer}0\.scale", rf"{ours}.\1.gamma1", torch.flatten),
            Rule(rf"{layer}0\.fn\.norm\.{_END}", rf"{ours}.\1.norm1.\2"),
            Rule(rf"{layer}0\.fn\.fn\.mix_heads_pre_attn", rf"{ours}.\1.attn.mix_before"),
            Rule(rf"{layer}0\.fn\.fn\.mix_heads_post_attn", rf"{ours}.\1.attn.mix_after"),
            Rule(rf"{layer}0\.fn\.fn\.to_(q|kv)\.weight", rf"{ours}.\1.attn.\2.weight"),
            Rule(rf"{layer}0\.fn\.fn\.to_out\.0\.{_END}", rf"{ours}.\1.attn.proj.\2"),
            Rule(rf"{layer}1\.scale", rf"{ours}.\1.gamma2", torch.flatten),
            Rule(rf"{layer}1\.fn\.norm\.{_END}", rf"{ours}.\1.norm2.\2"),
            Rule(rf"{layer}1\.fn\.fn\.net\.0\.{_END}", rf"{ours}.\1.mlp.fc1.\2"),
            Rule(rf"{layer}1\.fn\.fn\.net\.3\.{_END}", rf"{ours}.\1.mlp.fc2.\2"),
        ]
    return rules


def _swin(options: Options) -> list[Rule]:
    from vitctl.models.swin import border_mask  # imports timm, which takes seconds

    layer = r"stage(\d)\.layers\.(\d+)\.([01])\."

    def block(tail: str) -> Callable[[re.Match[str]], str]:
        """In the scripts, stages count from 1, and a layer is a pair of blocks, of which the second is shifted."""
        return lambda match: match.expand(
            f"stages.{int(match[1]) - 1}.blocks.{2 * int(match[2]) + int(match[3])}.{tail}"
        )

    def expected(upper: bool) -> Callable[[Tensor], bool]:
        """Compare an untrained mask with vitctl's, for windows split into upper and lower or left and right parts."""
        window = int(options["window_size"])
        last = border_mask(2 * window, window, window // 2)[2 if upper else 1] if window > 1 else torch.zeros(1, 1)
        return lambda tensor: torch.equal(tensor, last)

    return [
        Rule(rf"stage(\d)\.patch_partition\.linear\.{_END}", lambda m: f"stages.{int(m[1]) - 1}.merge.proj.{m[2]}"),
        Rule(rf"{layer}attention_block\.fn\.norm\.{_END}", block(r"norm1.\4")),
        Rule(rf"{layer}attention_block\.fn\.fn\.upper_lower_mask", None, check=expected(upper=True)),
        Rule(rf"{layer}attention_block\.fn\.fn\.left_right_mask", None, check=expected(upper=False)),
        Rule(rf"{layer}attention_block\.fn\.fn\.pos_embedding", block("attn.pos_embed")),
        Rule(rf"{layer}attention_block\.fn\.fn\.to_qkv\.weight", block("attn.qkv.weight")),
        Rule(rf"{layer}attention_block\.fn\.fn\.to_out\.{_END}", block(r"attn.proj.\4")),
        Rule(rf"{layer}mlp_block\.fn\.norm\.{_END}", block(r"norm2.\4")),
        Rule(rf"{layer}mlp_block\.fn\.fn\.net\.0\.{_END}", block(r"mlp.fc1.\4")),
        Rule(rf"{layer}mlp_block\.fn\.fn\.net\.2\.{_END}", block(r"mlp.fc2.\4")),
        Rule(rf"mlp_head\.0\.{_END}", r"norm.\1"),
        Rule(rf"mlp_head\.1\.{_END}", r"head.\1"),
    ]


def _mlpmixer(options: Options) -> list[Rule]:
    depth, patch = int(options["depth"]), int(options["patch_size"])

    def block(tail: str) -> Callable[[re.Match[str]], str]:
        """Before the blocks, the scripts have two modules: patch extraction and projection."""
        return lambda match: match.expand(f"blocks.{int(match[1]) - 2}.{tail}")

    def convolution(tensor: Tensor) -> Tensor:
        return rearrange(tensor, "d (p q c) -> d c p q", p=patch, q=patch) if tensor.ndim == 2 else tensor

    def matrix(tensor: Tensor) -> Tensor:
        return tensor.squeeze(-1) if tensor.ndim == 3 else tensor

    return [
        Rule(rf"1\.{_END}", r"stem.proj.\1", convolution),
        Rule(rf"(\d+)\.0\.norm\.{_END}", block(r"norm1.\2")),
        Rule(rf"(\d+)\.0\.fn\.0\.{_END}", block(r"mlp_tokens.fc1.\2"), matrix),
        Rule(rf"(\d+)\.0\.fn\.3\.{_END}", block(r"mlp_tokens.fc2.\2"), matrix),
        Rule(rf"(\d+)\.1\.norm\.{_END}", block(r"norm2.\2")),
        Rule(rf"(\d+)\.1\.fn\.0\.{_END}", block(r"mlp_channels.fc1.\2")),
        Rule(rf"(\d+)\.1\.fn\.3\.{_END}", block(r"mlp_channels.fc2.\2")),
        Rule(rf"{depth + 2}\.{_END}", r"norm.\1"),
        Rule(rf"{depth + 4}\.{_END}", r"head.\1"),
    ]


def _convmixer(options: Options) -> list[Rule]:
    def block(tail: str) -> Callable[[re.Match[str]], str]:
        """Before the blocks, the scripts have three modules: patch projection, activation and norm."""
        return lambda match: match.expand(f"blocks.{int(match[1]) - 3}.{tail}")

    return [
        Rule(rf"0\.{_END}", r"stem.0.\1"),
        Rule(rf"2\.{_NORM}", r"stem.2.\1"),
        Rule(rf"(\d+)\.0\.fn\.0\.{_END}", block(r"0.fn.0.\2")),
        Rule(rf"(\d+)\.0\.fn\.2\.{_NORM}", block(r"0.fn.2.\2")),
        Rule(rf"(\d+)\.1\.{_END}", block(r"1.\2")),
        Rule(rf"(\d+)\.3\.{_NORM}", block(r"3.\2")),
        Rule(rf"{int(options['depth']) + 5}\.{_END}", r"head.\1"),
    ]


def _mobilevit(options: Options) -> list[Rule]:
    residual = ("0.0", "1.0", "1.1", "1.2", "2.0", "3.0", "4.0")

    def inverted(match: re.Match[str]) -> str:
        convolution, part = divmod(int(match[2]), 3)
        return f"stages.{residual[int(match[1])]}.conv.{convolution}.{part}.{match[3]}"

    def transformer(tail: str) -> Callable[[re.Match[str]], str]:
        return lambda match: match.expand(f"stages.{int(match[1]) + 2}.1.{tail}")

    layer = r"mvit\.(\d)\.transformer\.layers\.(\d+)\."
    rules = [
        Rule(rf"conv1\.([01])\.{_NORM}", r"stem.\1.\2"),
        Rule(rf"mv2\.([0-6])\.conv\.([013467])\.{_NORM}", inverted),
        Rule(rf"{layer}0\.norm\.{_END}", transformer(r"blocks.\2.norm1.\3")),
        Rule(rf"{layer}0\.fn\.to_qkv\.weight", transformer(r"blocks.\2.attn.qkv.weight")),
        Rule(rf"{layer}0\.fn\.to_out\.0\.{_END}", transformer(r"blocks.\2.attn.proj.\3")),
        Rule(rf"{layer}1\.norm\.{_END}", transformer(r"blocks.\2.norm2.\3")),
        Rule(rf"{layer}1\.fn\.net\.0\.{_END}", transformer(r"blocks.\2.mlp.fc1.\3")),
        Rule(rf"{layer}1\.fn\.net\.3\.{_END}", transformer(r"blocks.\2.mlp.fc2.\3")),
        Rule(rf"conv2\.([01])\.{_NORM}", r"last.\1.\2"),
        Rule(r"fc\.weight", "head.weight"),
    ]
    for theirs, ours in (("conv1", "conv_in"), ("conv2", "widen"), ("conv3", "narrow"), ("conv4", "conv_out")):
        rules.append(Rule(rf"mvit\.(\d)\.{theirs}\.([01])\.{_NORM}", transformer(rf"{ours}.\2.\3")))
    return rules


def _resnet(options: Options) -> list[Rule]:
    return [
        Rule(r"conv1\.weight", "conv1.weight"),
        Rule(rf"bn1\.{_NORM}", r"bn1.\1"),
        Rule(r"(layer\d\.\d+\.conv\d)\.weight", r"\1.weight"),
        Rule(rf"(layer\d\.\d+\.bn\d)\.{_NORM}", r"\1.\2"),
        Rule(rf"(layer\d\.\d+)\.shortcut\.([01])\.{_NORM}", r"\1.downsample.\2.\3"),
        Rule(rf"linear\.{_END}", r"fc.\1"),
    ]


def _vgg(options: Options) -> list[Rule]:
    return [
        Rule(rf"features\.(\d+)\.{_NORM}", r"features.\1.\2"),
        Rule(rf"classifier\.{_END}", r"head.\1"),
    ]


def _unchanged(options: Options) -> list[Rule]:
    return [Rule(r"(.+)", r"\1")]


RULES: dict[str, Callable[[Options], list[Rule]]] = {
    "vit": _vit,
    "vit_small": _vit_small,
    "vit_tiny": _vit_small,
    "simplevit": _simplevit,
    "dyt": _vit,
    "cait": _cait,
    "cait_small": _cait,
    "swin": _swin,
    "mlpmixer": _mlpmixer,
    "convmixer": _convmixer,
    "mobilevit": _mobilevit,
    "res18": _resnet,
    "res34": _resnet,
    "res50": _resnet,
    "res101": _resnet,
    "vgg": _vgg,
    "vit_timm": _unchanged,
}
"""For each network of the original scripts, the function that returns its rules."""

_OPTIONS_HINT = "use the --net, --patch, --size, --dataset and --convkernel that the weights were trained with"


def renamed(
    net: str, options: Options, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[str, Tensor]], list[str]]:
    """Convert weights from the original scripts without checking their shapes.

    Args:
        net: a name of :data:`RULES`.
        options: value of every option of the row.
        tensors: weights from the original scripts.

    Returns:
        For each of vitctl's names, the original name and the converted tensor; and the original names without a rule.

    Raises:
        RequestError: an untrained mask is not that of the network.
    """
    rules = [(re.compile(rule.pattern), rule) for rule in RULES[net](options)]
    state: dict[str, tuple[str, Tensor]] = {}
    unknown: list[str] = []
    for theirs, tensor in tensors.items():
        match, rule = next(
            ((found, rule) for pattern, rule in rules if (found := pattern.fullmatch(theirs))), (None, None)
        )
        if match is None or rule is None:
            unknown.append(theirs)
        elif rule.name is None:
            if not rule.check(tensor):
                raise RequestError(f"{theirs} is not the mask of --net {net} with these options", hint=_OPTIONS_HINT)
        else:
            ours = match.expand(rule.name) if isinstance(rule.name, str) else rule.name(match)
            if ours in state:
                unknown.append(theirs)
                continue
            try:
                state[ours] = theirs, rule.change(tensor)
            except Exception:  # noqa: BLE001 - einops raises its own errors for shapes that do not match
                state[ours] = theirs, tensor
    return state, unknown


def has_rule(net: str, options: Options) -> Callable[[str], bool]:
    """Return a predicate for names of tensors: whether a rule of the network matches."""
    pattern = re.compile("|".join(f"(?:{rule.pattern})" for rule in RULES[net](options)))
    return lambda name: pattern.fullmatch(name) is not None


def translate(
    net: str, options: Options, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Convert weights from the original scripts to vitctl's names and shapes.

    Args:
        net: a name of :data:`RULES`.
        options: value of every option of the row.
        tensors: weights from the original scripts, also with prefixes such as ``module.``.
        expected: state dict of vitctl's network, for its names and shapes.

    Raises:
        RequestError: a tensor is unknown or missing, or has the wrong shape, the wrong type, NaN or infinity.
    """
    known = expected.__contains__ if RULES[net] is _unchanged else has_rule(net, options)
    tensors, others = without_prefix(tensors, known)
    state, unknown = renamed(net, options, tensors)
    unknown += others
    unknown += [theirs for ours, (theirs, _) in state.items() if ours not in expected]
    for ours, (theirs, tensor) in state.items():
        if ours not in expected:
            continue
        if tensor.is_floating_point() != expected[ours].is_floating_point():
            problem = f"has the wrong type {str(tensor.dtype).removeprefix('torch.')}"
        elif not tensor.isfinite().all():
            problem = "contains NaN or infinity"
        elif tensor.shape != expected[ours].shape:
            raise RequestError(
                f"{theirs} has shape {list(tensors[theirs].shape)}, but --net {net} with these options needs "
                f"{list(expected[ours].shape)}",
                hint=_OPTIONS_HINT,
            )
        else:
            continue
        raise RequestError(f"{theirs} {problem}", hint="use another file that the original scripts saved")
    missing = [name for name in expected if name not in state]
    if unknown or missing:
        parts = [
            f"{problem}: {first_of(names)}" for problem, names in (("unknown", unknown), ("missing", missing)) if names
        ]
        raise RequestError(
            f"not the weights of --net {net} of the original scripts: {'; '.join(parts)}", hint=_OPTIONS_HINT
        )
    return {name: state[name][1].to(expected[name].dtype).contiguous() for name in expected}


def original_options(net: str, tensors: Mapping[str, Tensor]) -> dict[str, Value]:
    """Return the options that must be read from the tensors: ``head_hidden`` of a vit from before March 2022."""
    hidden = [
        tensor.shape[-1] for name, tensor in tensors.items() if name.endswith("mlp_head.4.weight") and tensor.ndim == 2
    ]
    return {"head_hidden": hidden[0]} if net == "vit" and hidden else {}


def original_network(tensors: Mapping[str, Tensor]) -> tuple[str, str | None] | None:
    """Recognise weights of the original scripts.

    Returns:
        None for other weights; else the network's name, and the flags with which ``vitctl convert`` accepts the weights,
        or None in place of the flags if the network does not have its default sizes.
    """
    named: list[str] = []
    for net, rules in RULES.items():
        entry = MODELS[net]
        options = entry.resolve_options({}, f"--net {net}") | original_options(net, tensors)
        known = has_rule(net, options)
        stripped, others = without_prefix(tensors, known)
        if others or not all(map(known, stripped)):
            continue
        for dataset, num_classes in (("", 10), (" --dataset cifar100", 100)):
            with torch.device("meta"):
                model = build_model(net, options, img_size=entry.img_size, in_chans=3, num_classes=num_classes)
            try:
                translate(net, options, tensors, model.state_dict())
            except RequestError:
                continue
            return net, f"--net {net}{dataset}"
        if rules is not _unchanged:  # it accepts the names of any network
            named.append(net)
    return (named[0], None) if named else None
