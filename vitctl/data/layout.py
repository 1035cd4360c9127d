"""Layouts of image folders: the part and class of each image. No image is decoded.

A layout is a rule of :data:`LAYOUTS`, which returns what it recognises in a folder. If no layout can be used, the rules
of :data:`MISTAKES` explain why.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from shlex import quote

import numpy as np
import numpy.typing as npt

from vitctl.data.cache import ImageFile
from vitctl.data.choice import identity_keys, keys_below
from vitctl.data.labels import LabelRow, find_labelled, has_labels, read_annotations, read_labels
from vitctl.data.tree import CONTAINERS, HEIF_HINT, Tree, join, part_of
from vitctl.errors import RequestError
from vitctl.registry import or_list, similar
from vitctl.units import escaped, plural

SPLITS = ("train", "val", "test")

WHOLE = "whole"
"""Key of images that are not divided into parts, instead of one of :data:`SPLITS`."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SHOWN = 5
_NESTED = 4
"""Most folders to descend into, each the only one in its parent."""

_MARKUP = frozenset({"labels", "annotations", "masks", "bboxes", "labeltxt", "segmentationclass", "imagesets"})
"""Names of folders beside the images of sets for detection and segmentation, in lower case."""


class Undivided(RequestError):
    """A folder has labelled images that are not divided into training and test images."""


def class_name(folder: str) -> str:
    """Return the name of a folder's class: in Unicode NFC, :func:`~vitctl.units.escaped`, and on one line.

    A Mac stores ``é`` as two characters (NFD), other systems usually as one (NFC).
    """
    if folder.isascii() and folder.isprintable():
        return folder
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], unicodedata.normalize("NFC", escaped(folder)))


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a folder.

    Attributes:
        classes: names of the classes, see :func:`class_name`, sorted by the names of their folders.
        files: all images, ordered by split (train, val, test), class and path.
        labels: int64 [n], the class of each image.
        identities: ``CLASS/PATH`` of each image, with the path below its class, named like a class.
        counts: number of images per split; 0 for a missing one.
        folders: folder of each split that exists, relative to the root; ``""`` for the root.
        summary: the number of images of each part, and the folders that are not used, in one line.
        skipped: sentences that count the files that were skipped.
    """

    classes: tuple[str, ...]
    files: list[ImageFile]
    labels: npt.NDArray[np.int64]
    identities: tuple[str, ...]
    counts: dict[str, int]
    folders: dict[str, str]
    summary: str
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class ClassImages:
    """The images of a class.

    Attributes:
        folder: folder that their identities are relative to.
        files: the images.
    """

    folder: str
    files: list[ImageFile]

    def identity(self, name: str, file: ImageFile) -> str:
        """Return the class ``name`` and the path of an image below its folder, as ``CLASS/PATH``."""
        return class_name(f"{name}/{file.path.removeprefix(f'{self.folder}/')}")


@dataclass(frozen=True)
class Part:
    """A part of a data set.

    Attributes:
        folder: its folder.
        classes: the images of each class.
        table: name of the file with the labels, if it lies in the folder.
    """

    folder: str
    classes: dict[str, ClassImages]
    table: str | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a rule recognised.

    Attributes:
        parts: parts by split, or the images that are not divided under :data:`WHOLE`.
        unused: folders beside the parts and other images that are not used.
        labels: the file with the labels, if they come from one.
    """

    parts: dict[str, Part]
    unused: tuple[str, ...] = ()
    labels: Path | None = None


# -- labels of one part ------------------------------------------------------------------------------------------------


def annotated(tree: Tree, folder: str) -> Part | None:
    """Recognise images with a file such as ``val_annotations.txt``, as in Tiny ImageNet."""
    tables = [name for name in tree.read(folder).others if name.endswith("annotations.txt")]
    rows = read_annotations(tree.root / folder / tables[0]) if tables else []
    if not rows:
        return None
    inner = next((join(folder, name) for name in tree.folders(folder) if name.casefold() in CONTAINERS), folder)
    found = find_labelled(rows, tree.images(folder), inner, {}, str(tree.root / folder / tables[0]))
    return Part(folder, _by_class(found, inner), tables[0])


def in_class_folders(tree: Tree, folder: str) -> Part | None:
    """Recognise a folder of images for each class."""
    names = tree.folders(folder)
    contained = len(names) == 1 and names[0].casefold() in CONTAINERS
    if not names or contained or _is_markup(names) or len(_part_folders(tree, folder)) > 1:
        return None
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        places[class_name(name)].append(join(folder, name))
    # Two folders may differ only in their Unicode form.
    return Part(
        folder,
        {
            name: ClassImages(
                inner[0] if len(inner) == 1 else folder, [file for each in inner for file in tree.images(each)]
            )
            for name, inner in places.items()
        },
    )


LABELLINGS: dict[str, Callable[[Tree, str], Part | None]] = {
    "annotations": annotated,
    "class folders": in_class_folders,
}
"""Ways to label the images of one part; the first that recognises a folder is used."""


def labelled(tree: Tree, folder: str, split: str) -> Part | None:
    """Return a part with the labels of its images, or None if they have none.

    If the folder has only a folder of the same part, as ``seg_train/seg_train``, or only ``images`` with further
    folders, that one is used instead.
    """
    for _ in range(_NESTED):
        child = _only_child(tree, folder)
        name = child.rpartition("/")[2] if child else ""
        if child is None or (part_of(name)[0] != split and name.casefold() not in CONTAINERS):
            break
        folder = child
    return next(filter(None, (find(tree, folder) for find in LABELLINGS.values())), None)


# -- layouts -----------------------------------------------------------------------------------------------------------


def in_parts(tree: Tree, folder: str, known: Collection[str] = ()) -> Layout | None:
    """Recognise folders named after the parts, such as ``Training/`` and ``Testing/``, complete or not."""
    chosen = {split: name for split, name in _part_folders(tree, folder).items() if class_name(name) not in known}
    others = [name for name in tree.folders(folder) if name not in chosen.values()]
    if len(chosen) == 1 and others:
        lone = join(folder, *chosen.values())
        if tree.read(lone).images and any(tree.has_images(join(folder, name)) for name in others):
            return None  # a class named train, among others
    parts: dict[str, Part] = {}
    unused = [f"{join(folder, name)}/" for name in others]
    for split in SPLITS:
        if split in chosen:
            place = join(folder, chosen[split])
            part = labelled(tree, place, split)
            if part is None and split != "train" and tree.has_images(place):
                unused.append(f"{place}/ (no labels)")
            else:
                parts[split] = part or Part(place, {})
    return Layout(parts=parts, unused=tuple(unused)) if chosen else None


def in_one_set(tree: Tree, folder: str, known: Collection[str] = ()) -> Layout | None:
    """Recognise class folders that are not divided into parts."""
    names = [name for name in tree.folders(folder) if tree.has_images(join(folder, name))]
    if not names:
        return None
    if len(names) == 1 and not tree.read(join(folder, names[0])).images and class_name(names[0]) not in known:
        return None  # a data set one folder deeper
    part = in_class_folders(tree, folder)
    if part is None:
        return None
    unused = tuple(f"{join(folder, name)}/" for name, found in part.classes.items() if not found.files)
    return Layout(parts={WHOLE: _with_images(part)}, unused=unused)


LAYOUTS: dict[str, Callable[[Tree, str, Collection[str]], Layout | None]] = {
    "parts": in_parts,
    "class folders": in_one_set,
}
"""Layouts: functions of the tree, a folder and known names of classes. The first that recognises the folder is used."""


def find_layout(tree: Tree, folder: str = "", known: Collection[str] = ()) -> Layout | None:
    """Return the layout of a folder, or of the only folder in it, and so on; None if nothing is recognised."""
    for _ in range(_NESTED):
        for find in LAYOUTS.values():
            if layout := find(tree, folder, known):
                return layout
        child = _only_child(tree, folder)
        if child is None:
            break
        folder = child
    return None


def from_labels(tree: Tree, path: Path) -> Layout:
    """Return the layout of images whose labels are in a CSV file.

    The part of an image comes from a column of the file, else from the image's folder, else from the name of the file,
    such as ``trainLabels.csv``.

    Raises:
        RequestError: see :func:`read_labels` and :func:`find_labelled`.
    """
    top = ""
    for _ in range(_NESTED):
        if not _part_folders(tree, top):
            top = _only_child(tree, top) or top
    folders = {split: join(top, name) for split, name in _part_folders(tree, top).items()}
    named = part_of(path.stem)[0]
    rows = read_labels(path)
    images = tree.images("")
    by_name = [row if row.part else row._replace(part=named) for row in rows]
    found = find_labelled(by_name, images, _relative(path.parent, tree.root), folders, f"--labels {path}")
    in_column = {row.name: row.part for row in rows}

    def split_of(image: ImageFile, row: LabelRow) -> str:
        inside = (split for split, folder in folders.items() if image.path.startswith(f"{folder}/"))
        return in_column[row.name] or next(inside, None) or named or WHOLE

    by_split: defaultdict[str, list[tuple[ImageFile, LabelRow]]] = defaultdict(list)
    for image, row in found:
        by_split[split_of(image, row)].append((image, row))
    parts = {}
    for split, members in ({WHOLE: found} if WHOLE in by_split else by_split).items():
        folder = folders.get(split, "")
        if not all(image.path.startswith(f"{folder}/") for image, _ in members):
            folder = ""
        parts[split] = Part(folder, _by_class(members, folder))
    rest = len({image.path for image in images}.difference(image.path for image, _ in found))
    unused = (f"{plural(rest, 'image')} without a label",) if rest else ()
    return Layout(parts=parts, unused=unused, labels=path)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def marked_up(tree: Tree, layout: Layout | None) -> RequestError | None:
    """Recognise a set for object detection or segmentation, with ``labels/`` or ``masks/`` beside its images."""
    inner = [part.folder for part in layout.parts.values()] if layout else tree.folders("")
    unlabelled = layout is not None and not any(part.classes for part in layout.parts.values())
    for place in ("", *inner):
        names = tree.folders(place)
        markup = [name for name in names if name.casefold() in _MARKUP]
        if _is_markup(names) or (markup and unlabelled):
            return RequestError(
                f"{tree.root / place} has {markup[0]}/, as a set for object detection or segmentation",
                hint=f"use a set with one class per image: {tree.root}/train/CLASS and {tree.root}/test/CLASS",
            )
    return None


def one_level_too_low(tree: Tree, layout: Layout | None) -> RequestError | None:
    """Recognise a folder that is itself a part of a data set."""
    root = tree.root.absolute()
    if layout is not None and WHOLE not in layout.parts:
        return None
    for above in (root.parent, root.parent.parent):
        try:
            whole = in_parts(Tree(above), "")
        except RequestError:  # a folder that belongs to someone else
            continue
        places = [above / part.folder for part in whole.parts.values()] if whole else []
        inside = any(place.is_relative_to(root) or root.is_relative_to(place) for place in places)
        if whole and inside and _can_train(whole):
            return RequestError(
                f"{tree.root} is only a part of a data set", hint=f"did you mean --dataset {quote(str(above))}?"
            )
    return None


def one_level_too_high(tree: Tree, layout: Layout | None) -> RequestError | None:
    """Recognise a folder with one or several data sets in it."""
    if layout is not None and "train" in layout.parts:
        return None
    inner = {name: find_layout(tree, name) for name in tree.folders("")}
    sets = [name for name, found in inner.items() if found and _can_train(found)]
    if layout is None and not sets:
        sets = [name for name, found in inner.items() if found and len(_classes(found, WHOLE)) > 1]
    if not sets:
        return None
    return RequestError(
        f"{tree.root} is not a data set, but has {', '.join(f'{name}/' for name in sets[:_SHOWN])} in it",
        hint=f"did you mean --dataset {or_list([quote(str(tree.root / name)) for name in sets[:3]])}?",
    )


def labels_without_part(tree: Tree, layout: Layout | None) -> RequestError | None:
    """Recognise a file of labels without images to test on, or with fewer than two classes to train on."""
    if layout is None or layout.labels is None:
        return None
    trained = _classes(layout, "train") or _classes(layout, WHOLE)
    if len(trained) < 2:
        return RequestError(
            f"--labels {layout.labels} has training images of {'one class' if trained else 'no class'}",
            hint="add images of two or more classes to it, or use --labels with another file",
        )
    return Undivided(
        f"--labels {layout.labels} has no test images",
        hint="add --test-fraction 0.2, or a column named split with train or test for each image",
    )


def labels_elsewhere(tree: Tree, layout: Layout | None) -> RequestError | None:
    """Recognise images without class folders beside a CSV file with their labels."""
    if layout is not None and ("train" not in layout.parts or layout.parts["train"].classes):
        return None
    place = layout.parts["train"].folder if layout else ""
    table = _table(tree, place)
    if table is None or not tree.has_images(place):
        return None
    return RequestError(f"{tree.root / place} has images but no class folders", hint=f"add --labels {quote(table)}")


def too_few_classes(tree: Tree, layout: Layout | None) -> RequestError | None:
    """Recognise a training set, or class folders, with fewer than two classes."""
    part = layout.parts.get("train") or layout.parts.get(WHOLE) if layout else None
    return _too_few(tree, part) if part is not None and len(part.classes) < 2 else None


def no_split(tree: Tree, layout: Layout | None) -> RequestError | None:
    """Recognise training images without test images, test images without training images, and class folders."""
    train, test = f"{tree.root / 'train'}/CLASS", f"{tree.root / 'test'}/CLASS"
    if layout is None or not layout.parts:
        return None
    if WHOLE in layout.parts:
        part = layout.parts[WHOLE]
        names = list(part.classes)
        return Undivided(
            f"{tree.root / part.folder} has class folders ({_first(names, 3)}) but no train/ and test/",
            hint="add --test-fraction 0.2 to test on a fifth of each class and train on the others",
        )
    if "train" in layout.parts:
        place = layout.parts["train"].folder
        unlabelled = f"; not used: {', '.join(layout.unused)}" if layout.unused else ""
        return Undivided(
            f"{tree.root} has {place}/ but neither test/ nor val/{unlabelled}",
            hint=f"add --test-fraction 0.2, or move some images of each class to {test}",
        )
    return RequestError(
        f"{tree.root} has {' and '.join(f'{part.folder}/' for part in layout.parts.values())} but no train/",
        hint=f"move the training images of each class to {train}",
    )


def nothing(tree: Tree, layout: Layout | None) -> RequestError | None:
    """Describe a folder in which nothing is recognised."""
    train, test = f"{tree.root / 'train'}/CLASS", f"{tree.root / 'test'}/CLASS"
    what = "images but no class folders" if tree.has_images("") else "no train/ and test/"
    return RequestError(f"{tree.root} has {what}", hint=f"move the images of each class to {train} and {test}")


MISTAKES: dict[str, Callable[[Tree, Layout | None], RequestError | None]] = {
    "labels without a part": labels_without_part,
    "detection": marked_up,
    "too low": one_level_too_low,
    "too high": one_level_too_high,
    "labels elsewhere": labels_elsewhere,
    "too few classes": too_few_classes,
    "no split": no_split,
    "nothing": nothing,
}
"""What may be wrong with a folder that cannot be used. The first that recognises it describes it."""


# -- listings ----------------------------------------------------------------------------------------------------------


def list_images(root: Path, *, labels: str | None = None, test_fraction: float | None = None) -> Listing:
    """Find the images of a data set and their classes.

    Class folders without images are ignored in ``val/`` and ``test/``.

    Args:
        root: folder of the data set.
        labels: CSV file with the labels, absolute or relative to ``root``; None if the folders name the classes.
        test_fraction: share of each class to test on if the data set does not say which images to test on.

    Raises:
        RequestError: the folder or file is missing or has the wrong layout.
    """
    tree = _open(root)
    layout = find_layout(tree) if labels is None else from_labels(tree, root / labels)
    if layout is None or not _can_train(layout):
        error = next(filter(None, (explain(tree, layout) for explain in MISTAKES.values())))
        if layout is None or test_fraction is None or not isinstance(error, Undivided):
            raise error
        layout = divided(tree, layout, test_fraction)
    elif test_fraction is not None:
        places = [f"{layout.parts[split].folder or split}/" for split in SPLITS[1:] if split in layout.parts]
        raise RequestError(
            f"--test-fraction {test_fraction:g}: {root} has {' and '.join(places)} already",
            hint="remove --test-fraction",
        )
    classes = tuple(layout.parts["train"].classes)
    for split in layout.parts:
        _check_classes(tree, layout, split)
    return _listing(tree, layout, classes)


def _check_classes(tree: Tree, layout: Layout, split: str) -> None:
    """Check that a part has images, and only of classes to train on; all of these must have images in ``train``."""
    part, train = layout.parts[split], layout.parts["train"]
    place = tree.root / part.folder
    if not part.classes:
        raise RequestError(
            f"{place} has no class folders",
            hint=f"move some images of each class in {train.folder}/ to {place}/CLASS",
        )
    for name, found in part.classes.items():
        if not found.files and split == "train":
            raise _no_images(tree, found.folder)
        if found.files and name not in train.classes:
            raise _foreign_class(tree.root, layout, place, name)
    if not any(found.files for found in part.classes.values()):
        raise _no_images(tree, part.folder)


def list_test_images(
    root: Path, classes: tuple[str, ...], *, labels: str | None = None, test_fraction: float | None = None
) -> Listing:
    """Find images to test a trained network on: ``test/``, else ``val/``, else all images. Classes may be missing.

    Args:
        root: folder of the data set.
        classes: the network's classes.
        labels: as for :func:`list_images`. If the file has no other part, its images of ``train`` are used.
        test_fraction: share of each class to test on, if the network was trained on the rest of this folder.

    Raises:
        RequestError: the folder or file is missing, has the wrong layout or a class that the network does not have.
    """
    tree = _open(root)
    layout = find_layout(tree, known=classes) if labels is None else from_labels(tree, root / labels)
    if layout is not None and test_fraction is not None and layout.parts.keys() <= {WHOLE, "train"}:
        layout = divided(tree, layout, test_fraction)
    order = ("test", "val", WHOLE, *(["train"] if labels else []))
    chosen = next((split for split in order if layout and _classes(layout, split)), None)
    if layout is None or chosen is None:
        raise _not_measurable(tree, layout, classes)
    part = _with_images(layout.parts[chosen])
    for name in part.classes:
        if name not in classes:
            near = similar(name, classes)
            raise RequestError(
                f"class {name!r} in {root / part.folder} is not one of the network's: {_first(classes, _SHOWN)}",
                hint=f"did you mean {or_list(near)}?" if near else f"remove {name!r}, or use another --dataset",
            )
    if not part.classes:
        raise _no_images(tree, part.folder)
    return _listing(tree, replace(layout, parts={"test": part}), classes)


def divided(tree: Tree, layout: Layout, test_fraction: float) -> Layout:
    """Return the layout with a share of the images of each class as test images, chosen by identity.

    Raises:
        RequestError: there are fewer than two classes, or each has only one image.
    """
    part = layout.parts.get("train") or layout.parts[WHOLE]
    if len(part.classes) < 2:
        raise _too_few(tree, part)
    parts = {split: replace(part, classes={}) for split in ("train", "test")}
    for name, found in part.classes.items():
        keys = identity_keys([found.identity(name, file) for file in found.files], "test")
        tested = keys_below(test_fraction, np.zeros(len(keys), dtype=np.int64), keys)
        for split, chosen in (("train", ~tested), ("test", tested)):
            parts[split].classes[name] = replace(found, files=list(compress(found.files, chosen)))
    if not any(found.files for found in parts["test"].classes.values()):
        raise RequestError(
            f"--test-fraction {test_fraction:g} leaves no test images, as each class has one image",
            hint=f"add images of each class to {tree.root / part.folder}",
        )
    return replace(layout, parts=parts)


def _with_images(part: Part) -> Part:
    """Return a part without its classes that have no images."""
    return replace(part, classes={name: found for name, found in part.classes.items() if found.files})


def _too_few(tree: Tree, part: Part) -> RequestError:
    place = tree.root / part.folder
    found = f"only one class folder, {next(iter(part.classes))!r}" if part.classes else "no class folders"
    return RequestError(
        f"{place} has {found}", hint=f"move the images of each class to {place}/CLASS, for two or more classes"
    )


def _open(root: Path) -> Tree:
    if not root.is_dir():
        raise RequestError(
            f"--data-dir {root} {'is a file, not a folder' if root.exists() else 'not found'}",
            hint="use --data-dir with a folder that has train/CLASS/ and test/CLASS/",
        )
    return Tree(root)


def _listing(tree: Tree, layout: Layout, classes: tuple[str, ...]) -> Listing:
    files: list[ImageFile] = []
    labels: list[int] = []
    identities: list[str] = []
    counts = dict.fromkeys(SPLITS, 0)
    index = {name: i for i, name in enumerate(classes)}
    for split in SPLITS:
        part = layout.parts.get(split)
        for name, found in part.classes.items() if part else ():
            files += found.files
            labels += [index[name]] * len(found.files)
            counts[split] += len(found.files)
            identities += [found.identity(name, file) for file in found.files]
    folders = {split: layout.parts[split].folder for split in SPLITS if split in layout.parts}
    tables = {part.table for part in layout.parts.values() if part.table}
    if layout.labels:
        tables.add(layout.labels.name)
    return Listing(
        classes=classes,
        files=files,
        labels=np.array(labels, dtype=np.int64),
        identities=tuple(identities),
        counts=counts,
        folders=folders,
        summary=_summary(tree, layout, counts),
        skipped=tuple(tree.skipped(set(folders.values()), besides=tables)),
    )


def _summary(tree: Tree, layout: Layout, counts: Mapping[str, int]) -> str:
    """Return one line such as ``images: train/ 22, valid/ 2 as held-out, test/ 24; not used: seg_pred/``."""
    use = {"val": " as held-out" if "test" in layout.parts else " as test"}
    parts = []
    previous = ""
    for split in SPLITS:
        if part := layout.parts.get(split):
            root = split if layout.labels else f"{tree.root.name}/"
            name = f"{part.folder}/" if part.folder else root
            if name == previous:  # one folder, divided
                parts.append(f"{counts[split]:,} to {split} on")
            else:
                parts.append(f"{name} {counts[split]:,}{use.get(split, '')}")
            previous = name
    labels = f", labels of {layout.labels.name}" if layout.labels else ""
    unused = f"; not used: {_first(layout.unused, _SHOWN)}" if layout.unused else ""
    return f"images: {', '.join(parts)}{labels}{unused}"


def _foreign_class(root: Path, layout: Layout, place: Path, name: str) -> RequestError:
    if layout.labels:
        return RequestError(
            f"class {name!r} of {layout.labels} has test images but no training images",
            hint=f"add training images of {name!r}, or remove its lines",
        )
    train = layout.parts["train"]
    same = next((each for each in train.classes if each.casefold() == name.casefold()), None)
    return RequestError(
        f"{place / name} is not a class of {train.folder}/",
        hint=f"rename it to {same!r}, as in {train.folder}/"
        if same
        else f"add training images in {root / train.folder / name}, or remove {place / name}",
    )


def _no_images(tree: Tree, folder: str) -> RequestError:
    place = tree.root / folder
    skipped = tree.skipped([folder])
    if any(HEIF_HINT in each for each in skipped):
        return RequestError(f"{place} has only images that Pillow does not read", hint="run pip install pillow-heif")
    found = f" ({', '.join(skipped)})" if any(level.others for level in tree.walk(folder)) else ""
    return RequestError(f"{place} has no images{found}", hint=f"add images to {place}, or remove it")


def _not_measurable(tree: Tree, layout: Layout | None, classes: Collection[str]) -> RequestError:
    if layout is not None and _classes(layout, "train"):
        place = tree.root / layout.parts["train"].folder
        return RequestError(
            f"{tree.root} has no labelled test images", hint=f"use --dataset {quote(str(place))} to evaluate on it"
        )
    if class_name(tree.root.absolute().name) in classes:
        return RequestError(
            f"{tree.root} has the images of one class",
            hint=f"did you mean --dataset {quote(str(tree.root.absolute().parent))}?",
        )
    for explain in (marked_up, one_level_too_high, labels_elsewhere):
        if error := explain(tree, layout):
            return error
    return RequestError(
        f"{tree.root} has no test/CLASS/ and no class folders",
        hint=f"use --dataset with the images of each class in {tree.root}/CLASS",
    )


def _can_train(layout: Layout) -> bool:
    return len(_classes(layout, "train")) > 1 and ("test" in layout.parts or "val" in layout.parts)


def _classes(layout: Layout, split: str) -> Collection[str]:
    """Return the names of the classes of a part; none if it is missing."""
    return layout.parts[split].classes if split in layout.parts else ()


def _part_folders(tree: Tree, folder: str) -> dict[str, str]:
    """Return the folder of each part: ``train``, ``Testing``, or names with the same rest, as ``seg_train, seg_test``.

    The rest may differ, as of ``1_train, 2_test``, if all folders are named so. Of several folders of a part, the one with
    the shortest name is used.
    """
    by_rest: defaultdict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in sorted(tree.folders(folder), key=len):
        part, rest = part_of(name)
        if part is None:
            continue
        group = by_rest[rest]
        if part not in group or not tree.has_images(join(folder, group[part])):
            group[part] = name
    if () in by_rest:
        return by_rest[()]
    complete = [group for group in by_rest.values() if "train" in group and len(group) > 1]
    if len(complete) == 1:
        return complete[0]
    merged = {part: name for group in by_rest.values() for part, name in group.items()}
    return merged if "train" in merged and 1 < len(merged) == len(tree.folders(folder)) else {}


def _only_child(tree: Tree, folder: str) -> str | None:
    """Return the only folder in ``folder``, unless there are images beside it or it has nothing but images."""
    level = tree.read(folder)
    if level.images or len(level.folders) != 1:
        return None
    child = join(folder, level.folders[0])
    return None if tree.read(child).images or not tree.folders(child) else child


def _is_markup(names: Collection[str]) -> bool:
    folded = {name.casefold() for name in names}
    return bool(folded & _MARKUP and folded & CONTAINERS)


def _table(tree: Tree, folder: str) -> str | None:
    """Return the CSV file with labels in the root or in ``folder``, relative to the root."""
    places = [join(place, name) for place in dict.fromkeys(("", folder)) for name in tree.read(place).others]
    tables = [place for place in places if place.lower().endswith((".csv", ".tsv")) and has_labels(tree.root / place)]
    # Not the table of a competition's sample submission.
    return min(tables, key=lambda each: ("submission" in each.lower(), "label" not in each.lower(), each), default=None)


def _by_class(found: list[tuple[ImageFile, LabelRow]], folder: str) -> dict[str, ClassImages]:
    files: defaultdict[str, list[ImageFile]] = defaultdict(list)
    for image, row in found:
        files[row.label].append(image)
    return {class_name(name): ClassImages(folder, sorted(files[name])) for name in sorted(files)}


def _relative(path: Path, root: Path) -> str:
    """Return ``path`` relative to ``root``, or ``""`` if it is elsewhere."""
    inside = path.absolute().is_relative_to(root.absolute())
    text = path.absolute().relative_to(root.absolute()).as_posix() if inside else ""
    return "" if text == "." else text


def _first(names: Collection[str], count: int) -> str:
    return ", ".join([*list(names)[:count], *(["..."] if len(names) > count else [])])
