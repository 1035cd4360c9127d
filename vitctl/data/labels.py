"""Labels of images in a table: the CSV file of ``--labels``, and the annotations of Tiny ImageNet."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import splitext
from typing import NamedTuple

from vitctl.data.cache import ImageFile
from vitctl.data.tree import cannot_read, join, part_of
from vitctl.errors import RequestError

FILE_COLUMNS = (
    "filepath", "filepaths", "imagepath", "path", "paths", "filename", "filenames", "file", "files", "imagename",
    "imageid", "image", "images", "img", "idcode", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "class", "classes", "classname", "category", "categories", "target", "species", "breed",
    "diagnosis", "dx", "labelid", "classid", "categoryid",
)  # fmt: skip
PART_COLUMNS = ("split", "subset", "set", "part", "partition", "dataset")
"""Names of columns in lower case, without spaces, ``_`` and ``-``; the first that a table has is used."""


class LabelRow(NamedTuple):
    """A line of a table of labels.

    Attributes:
        name: path, file name or file name without ending, with ``/``.
        label: name of the class.
        part: ``train``, ``val``, ``test``, or None if the table has no such column.
    """

    name: str
    label: str
    part: str | None = None


def read_labels(path: Path) -> list[LabelRow]:
    """Read a CSV file whose first line names its columns; lines without a label are left out.

    Columns are separated by commas, semicolons or tabs.

    Raises:
        RequestError: the file cannot be read, or a column is missing.
    """
    header, *lines = _lines(path) or [(1, [])]
    columns = [re.sub(r"[\s_-]", "", name.casefold()) for name in header[1]]
    file, label, part = (
        next((columns.index(name) for name in names if name in columns), None)
        for names in (FILE_COLUMNS, LABEL_COLUMNS, PART_COLUMNS)
    )
    for index, what, instead in ((file, "files", "filename"), (label, "labels", "label")):
        if index is None:
            raise RequestError(
                f"--labels {path} has no column of {what}, but {', '.join(header[1]) or 'nothing'}",
                hint=f"add {instead} to its first line, as the name of the column with the {what}",
            )
    assert file is not None and label is not None
    rows = []
    for number, line in lines:
        cells = [cell.strip() for cell in line] + [""] * (len(columns) - len(line))
        if cells[file] and cells[label]:
            chosen = None if part is None else _part(path, number, cells[part])
            rows.append(LabelRow(_slashes(cells[file]), cells[label], chosen))
    if not rows:
        raise RequestError(f"--labels {path} has no lines with a label", hint="use --labels with another file")
    return rows


def has_labels(path: Path) -> bool:
    """Return whether a file is one that :func:`read_labels` accepts."""
    try:
        return bool(read_labels(path))
    except RequestError:
        return False


def read_annotations(path: Path) -> list[LabelRow]:
    """Read a file of Tiny ImageNet, whose lines begin with file name and class, separated by tabs."""
    return [LabelRow(_slashes(line[0]), line[1].strip()) for _, line in _lines(path, "\t") if len(line) > 1]


def find_labelled(
    rows: Sequence[LabelRow], images: Iterable[ImageFile], folder: str, parts: Mapping[str, str], where: str
) -> list[tuple[ImageFile, LabelRow]]:
    """Return the image of each row; a row without one gets a file of size -1, which cannot be read.

    A name is compared with the last parts of each path, with and without its ending. Case and Unicode form may differ
    unless both spellings exist, and folders that all names of the table begin with may be missing. If several images have
    that name, the one with exactly this path is preferred, else those in the folder of the row's part.

    Args:
        rows: the table.
        images: images to choose from.
        folder: folder that the names are relative to, if there is such an image; missing files get a path in it.
        parts: folder of each part.
        where: the table, for messages.

    Raises:
        RequestError: no image was found, a name has several images, or an image has several labels.
    """
    by_end = _by_end(images, {_folded(end) for row in rows for end in _ends(row.name)})

    def named(name: str) -> list[tuple[str, ImageFile]]:
        near = by_end.get(_folded(name), [])
        return [each for each in near if f"/{each[0]}".endswith(f"/{name}")] or near

    above = _folders_above([row.name for row in rows], named)
    chosen: dict[str, tuple[ImageFile, LabelRow]] = {}
    for row in rows:
        name = row.name[above:]
        found = named(name)
        exact = [each for each in found if each[0] in (name, join(folder, name))]
        part = parts.get(row.part) if row.part else None
        inside = [each for each in found if part and each[0].startswith(f"{part}/")]
        best = {image.path: image for _, image in exact or inside or found}
        if len(best) > 1:
            raise RequestError(
                f"{where}: {row.name!r} may be {' or '.join(sorted(best)[:2])}",
                hint="use paths in the file, such as train/1.png, or add a column named split",
            )
        image = next(iter(best.values()), ImageFile(join(folder, name), -1, 0))
        if image.path in chosen and chosen[image.path][1].label != row.label:
            raise RequestError(
                f"{where}: {row.name!r} has the labels {chosen[image.path][1].label!r} and {row.label!r}",
                hint=f"remove one of the two lines of {row.name!r} in the file",
            )
        chosen[image.path] = (image, row)
    if rows and all(image.size < 0 for image, _ in chosen.values()):
        raise RequestError(
            f"{where}: none of its {len(rows):,} images was found, such as {rows[0].name!r}",
            hint="use --dataset with the folder of these images",
        )
    return list(chosen.values())


def _ends(path: str) -> Iterator[str]:
    """Yield the path, and what remains without its first folder, the first two, and so on."""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def _by_end(images: Iterable[ImageFile], ends: Collection[str]) -> dict[str, list[tuple[str, ImageFile]]]:
    """Return, for each of ``ends``, the paths that end in it, with or without their own ending, and their images."""
    found: defaultdict[str, list[tuple[str, ImageFile]]] = defaultdict(list)
    for image in images:
        for path in {image.path, splitext(image.path)[0]}:
            for end in map(_folded, _ends(path)):
                if end in ends:
                    found[end].append((path, image))
    return found


def _folded(name: str) -> str:
    """Return a name without differences of case and Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def _folders_above(names: Sequence[str], find: Callable[[str], Sequence[object]]) -> int:
    """Return how many characters to leave out at the start of all names so that images are found.

    Only folders that all names share are left out, as others distinguish images of the same name.

    Args:
        names: the names of a table.
        find: returns the images of a name.
    """
    shared = os.path.commonprefix(names)  # noqa: RUF071 - cut at a slash in the next line
    starts = (0, *(match.end() for match in re.finditer("/", shared)))
    return next((start for start in starts if any(find(name[start:]) for name in names)), 0)


def _lines(path: Path, separator: str = "") -> list[tuple[int, list[str]]]:
    """Return the number and the cells of each line that is not empty."""
    try:
        content = path.read_bytes()
        # Excel's "Unicode text" is UTF-16.
        text = content.decode(
            "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        )
    except OSError as error:
        raise cannot_read(path, error) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not text in UTF-8", hint="use --labels with a CSV file in UTF-8") from error
    head = text.lstrip().partition("\n")[0]
    separator = separator or max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return [(reader.line_num, line) for line in reader if any(line)]
    except csv.Error as error:
        raise RequestError(f"{path} is not a table: {error}", hint="use --labels with another file") from error


def _part(path: Path, number: int, value: str) -> str:
    part = part_of(value)[0]
    if part is None:
        raise RequestError(
            f"--labels {path}:{number}: unknown part {value!r}", hint="use train, val or test in this column"
        )
    return part


def _slashes(name: str) -> str:
    """Return a relative path with ``/``, also if the table was written on Windows."""
    return name.strip().replace("\\", "/").removeprefix("./").lstrip("/")
