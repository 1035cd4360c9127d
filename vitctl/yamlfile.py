"""YAML files by the rules of YAML 1.2: ``1e-3`` is a number; duplicate keys and tags are errors.

Keys of the top level that begin with ``x-`` hold anchors, and are not part of the document.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vitctl.errors import RequestError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads scalars by YAML 1.2's core schema."""


# In YAML 1.1, PyYAML's dialect, "1e-3" is a string, "no" is false, "1:30" is 90, and "2024-05-01" is a date.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("bool", "int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)
# 1_000 is a number, as in YAML 1.1 and Python, but 2024_05_01 is text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:[0-9]+|[0-9]{1,3}(?:_[0-9]{3})+)\Z"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is not a plain word", key_node.start_mark)
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {key_node.value!r}", key_node.start_mark
            )
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


# PyYAML's constructor reads "010" as octal; in YAML 1.2 it is ten.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse YAML ``text`` whose top level is a mapping.

    Args:
        text: the document; an empty document is an empty mapping.
        source: name of the document in errors.

    Raises:
        RequestError: invalid YAML, several documents, not a mapping, a duplicate key, a tag, or nested too deeply.
    """
    try:
        node = _only_document(text, source)
        document = None if node is None else _Loader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        remedy = "replace the tabs with spaces in" if "'\\t'" in (error.problem or "") else "correct"
        raise RequestError(
            f"{place}: {error.problem or error.context}",
            hint=f"{remedy} line {mark.line + 1} of {source}" if mark else _USE_LINES,
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise RequestError(f"{source} is not valid YAML: {detail}", hint=_USE_LINES) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        what = "a list" if isinstance(document, list) else "a single value"
        raise RequestError(f"{source} has {what} at the top level, not 'key: value' lines", hint=_USE_LINES)
    return {str(key): value for key, value in document.items() if not str(key).startswith("x-")}


def _only_document(text: str, source: str) -> yaml.Node | None:
    """Return the document of ``text``, or None if it is empty; empty documents around a ``---`` do not count.

    Args:
        text: YAML.
        source: name of the text in errors.

    Raises:
        RequestError: several documents.
        yaml.YAMLError: invalid YAML.
    """
    nodes = [node for node in yaml.compose_all(text, Loader=_Loader) if node.value != ""]
    if len(nodes) > 1:
        lines = [node.start_mark.line + 1 for node in nodes]
        raise RequestError(
            f"{source} has {len(nodes)} documents, which start on lines {', '.join(map(str, lines))}",
            hint=f"keep one, such as that of line {lines[0]}, and remove or move the others",
        )
    return nodes[0] if nodes else None


Place = tuple[str | int, ...]
"""Path to a value in a document: keys and list indices."""

_USE_LINES = "write one 'key: value' per line"

_MAX_VALUES = 100_000


def line_numbers(text: str, source: str) -> dict[Place, int]:
    """Return the line, from 1, of every value in YAML ``text`` that :func:`parse_yaml` accepts.

    The value of a key has the line of the key. Values from an alias or a merge (``<<``) have the line of their source.

    Raises:
        RequestError: the document has more than 100,000 values after expanding its aliases, or contains itself.
    """
    lines: dict[Place, int] = {}

    def walk(node: yaml.Node, place: Place, line: int) -> None:
        lines[place] = line
        if len(lines) > _MAX_VALUES or len(place) > 50:
            raise RequestError(
                f"{source}:{line}: too many values, or an alias that contains itself",
                hint=f"remove aliases from {source}",
            )
        if isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                walk(item, (*place, i), item.start_mark.line + 1)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                        if isinstance(merged, yaml.MappingNode):
                            walk(merged, place, line)
            for key, value in node.value:
                if key.tag != "tag:yaml.org,2002:merge":
                    walk(value, (*place, str(key.value)), key.start_mark.line + 1)

    root = _only_document(text, source)
    if root is not None:
        walk(root, (), 1)
    return lines


class Mistakes:
    """Collects the mistakes in a file, to report all of them at once.

    Args:
        lines: line number of every value, see :func:`line_numbers`.
        source: name of the file in error messages.
    """

    def __init__(self, lines: Mapping[Place, int], source: str) -> None:
        self._lines = lines
        self._source = source
        self._found: set[tuple[int, str, str]] = set()  # line, message, hint

    def add(self, place: Place, message: str, hint: str) -> None:
        """Record a mistake in the value at ``place``, or in the nearest value around it that has a line."""
        while place and place not in self._lines:
            place = place[:-1]
        self._found.add((self._lines.get(place, 1), message, hint))

    @contextlib.contextmanager
    def collected(self, place: Place) -> Iterator[None]:
        """Record a RequestError of the block as a mistake at ``place``."""
        try:
            yield
        except RequestError as error:
            self.add(place, error.message, error.hint or f"correct {place[-1]}")

    def __len__(self) -> int:
        return len(self._found)

    def raise_all(self, check: str) -> None:
        """Raise all recorded mistakes as one RequestError, if there are any.

        Args:
            check: the command that checks the corrected file.
        """
        found = sorted(self._found)
        if len(found) == 1:
            line, message, hint = found[0]
            raise RequestError(f"{self._source}:{line}: {message}", hint=hint)
        if found:
            lines = "\n".join(f"  {self._source}:{line}: {message}; {hint}" for line, message, hint in found)
            raise RequestError(
                f"{self._source} has {len(found)} mistakes:\n{lines}",
                hint=f"correct them, then check the file: {check}",
            )


def read_text(path: Path) -> str:
    """Return the text of the file ``path``.

    Raises:
        RequestError: the file is missing, unreadable or not UTF-8 text.
    """
    content = b""
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]:
            raise RequestError(f"{path} is in UTF-16", hint=_SAVE_AS_UTF_8)
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise RequestError(f"{path} not found", hint="use the path of an existing YAML file") from error
    except OSError as error:
        raise RequestError(
            f"cannot read {path}: {error.strerror}", hint="use the path of a readable YAML file"
        ) from error
    except UnicodeDecodeError as error:
        if _BINARY.search(content):
            raise RequestError(f"{path} is not a text file", hint="use the path of a YAML file") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{path}:{line}: a character is not in UTF-8", hint=_SAVE_AS_UTF_8) from error


_SAVE_AS_UTF_8 = "save the file as UTF-8: most editors offer the encoding in their Save As dialog"

_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Control characters that no text has in any encoding with one byte per character."""
