"""Small versions of MNIST, Fashion-MNIST, KMNIST, SVHN and STL-10, with archives in the official formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.io

from vitctl.data.download import Archive
from vitctl.data.named import NAMED, Named

COUNTS = {"train": 40, "test": 20}


def small(name: str) -> tuple[Named, dict[str, bytes]]:
    """Return a data set with few images and their archives as the official ones, and these archives by name."""
    spec = NAMED[name]
    files = {"SVHN": mat_files, "STL10": stl_files}.get(spec.reader, idx_files)(spec)
    archives = tuple(
        Archive(url=each.url, size=len(content), checksums={"md5": hashlib.md5(content).hexdigest()})
        for each in spec.archives
        for content in (files[each.name],)
    )
    return replace(spec, archives=archives, counts=COUNTS), files


def images_of(spec: Named, part: str) -> npt.NDArray[np.uint8]:
    """Return the images of a part: random, and brighter for higher classes, uint8 [n, C, H, W]."""
    seed = sum(map(ord, spec.name + part))
    noise = np.random.default_rng(seed).integers(0, 100, (COUNTS[part], *spec.shape), dtype=np.uint8)
    return noise + (15 * labels_of(part)[:, None, None, None]).astype(np.uint8)


def labels_of(part: str) -> npt.NDArray[np.int64]:
    return np.arange(COUNTS[part]) * 7 % 10


def idx_files(spec: Named) -> dict[str, bytes]:
    """Return gzipped IDX files: a big-endian header with the type (8: uint8), the dimensions and the sizes."""
    files = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = images_of(spec, part)[:, 0], labels_of(part).astype(np.uint8)
        for values, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            files[f"{prefix}-{kind}-ubyte.gz"] = gzip.compress(header + values.tobytes(), mtime=0)
    return files


def mat_files(spec: Named) -> dict[str, bytes]:
    """Return MATLAB files: X, uint8 [32, 32, 3, n], and y, uint8 [n, 1], with the label 10 for the digit 0."""
    files = {}
    for part in ("train", "test"):
        file = io.BytesIO()
        labels = np.where(labels_of(part) == 0, 10, labels_of(part)).astype(np.uint8)[:, None]
        scipy.io.savemat(file, {"X": images_of(spec, part).transpose(2, 3, 1, 0), "y": labels}, do_compression=True)
        files[f"{part}_32x32.mat"] = file.getvalue()
    return files


def stl_files(spec: Named) -> dict[str, bytes]:
    """Return the archive of binary files: images by columns, labels from 1, and unlabelled images."""
    content = {"class_names.txt": "\n".join(spec.classes).encode(), "unlabeled_X.bin": bytes(27_648)}
    for part in ("train", "test"):
        content[f"{part}_X.bin"] = images_of(spec, part).swapaxes(2, 3).tobytes()
        content[f"{part}_y.bin"] = (labels_of(part) + 1).astype(np.uint8).tobytes()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for name, each in content.items():
            info = tarfile.TarInfo(f"stl10_binary/{name}")
            info.size = len(each)
            tar.addfile(info, io.BytesIO(each))
    return {"stl10_binary.tar.gz": file.getvalue()}


def write(files: dict[str, bytes], folder: Path) -> Path:
    """Write the archives to a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
