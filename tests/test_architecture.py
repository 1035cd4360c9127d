"""Imports respect the layers without cycles, light modules load no heavy package, no code parses error messages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vitctl"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("certificates", "cpus", "errors", "observer"),
    ("units",),
    ("registry", "files"),
    ("devices", "process", "recipes", "yamlfile"),
    ("data", "models", "optim"),
    ("config",),
    ("runs",),
    ("tracking",),
    ("training",),
    ("inference",),
    ("report",),
    ("benchmark", "export", "sweep", "tools"),
    ("doctor",),
    ("cli",),
)
"""Parts of the package, lowest layer first. A part may import only from lower layers, not from its own."""

HEAVY = {
    "PIL",
    "huggingface_hub",
    "numpy",
    "onnx",
    "onnxruntime",
    "optuna",
    "safetensors",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "tensorboard",
    "timm",
    "torch",
    "torchvision",
    "wandb",
}
LIGHT = (
    "certificates",
    "config",
    "cpus",
    "errors",
    "files",
    "observer",
    "process",
    "recipes",
    "registry",
    "runs",
    "units",
    "yamlfile",
)
"""Parts that import no heavy package, like ``vitctl.cli.app`` and every ``__init__.py`` but that of :mod:`vitctl.devices`."""


def name_of(path: Path) -> str:
    """Return a file's module name, such as ``vitctl.data.cache``; for ``__init__.py``, the package's name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def nodes(tree: ast.AST, *, lazy: bool) -> Iterator[ast.AST]:
    """Yield the nodes that run on import; with ``lazy``, also those in functions and for type checkers."""
    for child in ast.iter_child_nodes(tree):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if lazy or not (typing_only or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))):
            yield child
            yield from nodes(child, lazy=lazy)


def imports(module: str, *, lazy: bool) -> set[str]:
    """Return the full names of imported modules; ``from package import module`` counts as the module."""
    found = set()
    for node in nodes(tree_of(module), lazy=lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} has a relative import"
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in deeper}
    return found


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def test_every_part_has_a_layer() -> None:
    parts = {part_of(module) for module in MODULES} - {"", "__main__"}
    assert parts == LEVEL.keys()


def test_all_plots_are_drawn_by_the_reports() -> None:
    others = {"matplotlib", "plotly", "optuna.visualization"}
    found = {
        module: {name for name in imports(module, lazy=True) if name.startswith(tuple(others))} for module in MODULES
    }
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.parametrize("module", [each for each in MODULES if part_of(each) not in ("", "__main__")])
def test_imports_respect_the_layers(module: str) -> None:
    part = part_of(module)
    ours = {each for each in imports(module, lazy=True) if each.startswith("vitctl.")}
    upwards = {each for each in ours if part_of(each) != part and LEVEL[part_of(each)] >= LEVEL[part]}
    assert not upwards, f"{module} imports from its own or a higher layer"


def test_imports_form_no_cycle() -> None:
    # The functions of the package itself import when they are called, which is after all imports.
    graph = {module: imports(module, lazy=module != "vitctl") & MODULES.keys() - {module} for module in MODULES}
    done: set[str] = set()

    def visit(module: str, chain: tuple[str, ...]) -> None:
        assert module not in chain, " -> ".join((*chain[chain.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*chain, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert done == graph.keys()


def test_rooms_share_no_names_of_classes() -> None:
    rooms: dict[str, set[str]] = {}
    for module in MODULES:
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef):
                rooms.setdefault(node.name, set()).add(part_of(module))
    assert {name: parts for name, parts in rooms.items() if len(parts) > 1} == {}


LIGHT_MODULES = [
    module
    for module, path in MODULES.items()
    if (path.name == "__init__.py" and module != "vitctl.devices")
    or part_of(module) in (*LIGHT, "", "__main__")
    or module == "vitctl.cli.app"
]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    """Neither directly nor through other modules of vitctl."""
    seen, waiting = set(), {module}
    while waiting:
        current = waiting.pop()
        seen.add(current)
        found = imports(current, lazy=False)
        heavy = {name for name in found if name.split(".")[0] in HEAVY}
        assert not heavy, f"{current}, imported through {module}"
        waiting |= {name for name in found & MODULES.keys() if name not in seen}


# -- only vitctl.devices distinguishes devices ---------------------------------------------------------------------

DEVICE_QUESTIONS = {"is_cpu", "is_cuda", "is_mps"}
"""Attributes of a tensor that state the type of its device."""


def asks_for_device(tree: ast.AST) -> Iterator[str]:
    """Yield expressions that distinguish types of devices, such as ``x.device.type``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            type_of_device = node.attr == "type" and ast.unparse(node.value).endswith("device")
            if type_of_device or node.attr in DEVICE_QUESTIONS:
                yield ast.unparse(node)


@pytest.mark.parametrize("module", [each for each in MODULES if part_of(each) != "devices"])
def test_only_the_device_policy_distinguishes_devices(module: str) -> None:
    """Other code must ask for a field of :class:`vitctl.devices.DevicePolicy`, which tests can impose."""
    assert not list(asks_for_device(tree_of(module)))


@pytest.mark.parametrize(
    "code",
    [
        "if device.type == 'mps': pass",
        "kind = x.device.type",
        "if self.device.type in ('cuda', 'mps'): pass",
        "if x.is_cuda: pass",
    ],
)
def test_the_device_rule_detects_violations(code: str) -> None:
    assert list(asks_for_device(ast.parse(code)))


# -- no code parses error messages ---------------------------------------------------------------------------------

READERS = {"startswith", "endswith", "find", "index", "count", "partition", "rpartition", "removeprefix"}
"""String methods that search a text."""

FOREIGN = {
    "vitctl.devices.memory:is_out_of_memory": "torch has no exception class for running out of memory on CPU or MPS",
    "vitctl.training.checkpoint:load_checkpoint": "torch has one class for damage and for objects that it refuses to load",
    "vitctl.models.state_files:_read": "likewise",
    "vitctl.export.runtime:_first_line": "onnxruntime prefixes messages with its own code and source location",
    "vitctl.tracking.wandb:plain_message": "W&B's errors differ only in their messages",
}
"""Functions that may parse the message of a third-party error, and why there is no other way."""


def reads_text(function: ast.AST) -> Iterator[ast.AST]:
    """Yield expressions that seem to parse an exception's message: ``"x" in str(error)``, for instance."""
    names = {node.name for node in ast.walk(function) if isinstance(node, ast.ExceptHandler) and node.name}
    if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
        every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        names |= {
            each.arg
            for each in every
            if each.annotation is not None and ast.unparse(each.annotation).endswith(("Exception", "Error"))
        }
    texts = {f"str({name})" for name in names} | {f"{name}.args" for name in names}
    texts |= {
        node.targets[0].id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and any(text in ast.unparse(node.value) for text in texts)
    }

    def is_text(node: ast.AST) -> bool:
        written = ast.unparse(node)
        return any(written == text or written.startswith((f"{text}.", f"{text}[")) for text in texts)

    for node in ast.walk(function):
        if isinstance(node, ast.Compare) and any(map(is_text, (node.left, *node.comparators))):
            yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            reader = node.func.attr in READERS and is_text(node.func.value)
            pattern = node.func.attr in ("search", "match", "fullmatch", "findall") and any(map(is_text, node.args))
            if reader or pattern:
                yield node


@pytest.mark.parametrize("module", MODULES)
def test_no_code_parses_error_messages(module: str) -> None:
    """Code must use the type and fields of an exception, or a :class:`vitctl.process.failure.Failure`."""
    functions = [
        node for node in ast.walk(tree_of(module)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    for function in functions:
        if f"{module}:{function.name}" not in FOREIGN:
            found = [ast.unparse(node) for node in reads_text(function)]
            assert not found, f"{module}:{function.name}"


@pytest.mark.parametrize("place", FOREIGN)
def test_every_exception_to_the_rule_is_still_needed(place: str) -> None:
    module, name = place.split(":")
    (function,) = [
        node for node in ast.walk(tree_of(module)) if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert list(reads_text(function))


@pytest.mark.parametrize(
    "code",
    [
        "if 'full' in str(error): pass",
        "if str(error).startswith('full'): pass",
        "text = str(error).strip()\n        if 'full' in text: pass",
        "re.search('full', str(error))",
        "if error.args[0] == 'full': pass",
    ],
)
def test_the_rule_detects_violations(code: str) -> None:
    source = f"def f():\n    try:\n        g()\n    except ValueError as error:\n        {code}\n"
    assert list(reads_text(ast.parse(source).body[0]))
