"""Folders to search for a data set with official archives, and the errors if it is missing."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from vitctl.data.download import Archive, DownloadFailed, not_writable
from vitctl.data.tree import cannot_read
from vitctl.errors import RequestError, VitctlWarning
from vitctl.registry import or_list


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders to search for a data set.

    Attributes:
        title: name of the data set in messages.
        given: whether ``--data-dir`` was given.
        own: folders of the data set; it is downloaded to the first.
        shared: folders that may have the data set in torchvision's layout, next to others.
        default: folder to download to without ``--data-dir``.
    """

    title: str
    given: bool
    own: tuple[Path, ...]
    shared: tuple[Path, ...]
    default: Path

    @property
    def not_found(self) -> str:
        """Message that the data set is in none of the folders."""
        return f"{self.title} not found in {or_list([str(each) for each in (*self.own, *self.shared[:1])])}"


def places_of(name: str, title: str, data_dir: str | None) -> Places:
    """Return the folders to search: ``--data-dir``, or ``$VITCTL_DATA/NAME``, the user's data folder and ``./data``.

    Args:
        name: key in ``DATASETS``.
        title: name of the data set in messages.
        data_dir: ``--data-dir``, if given.

    Raises:
        RequestError: ``data_dir`` is not a folder.
    """
    usual = [Path(platformdirs.user_data_dir("vitctl"), name)]
    if os.environ.get("VITCTL_DATA"):
        usual.insert(0, Path(os.environ["VITCTL_DATA"], name).expanduser())
    if data_dir is None:
        tutorials = Path("data").absolute()
        return Places(
            title=title, given=False, own=tuple(usual), shared=(tutorials, tutorials / name), default=usual[0]
        )
    root = Path(data_dir).expanduser()
    if not os.path.isdir(root):
        raise RequestError(
            f"--data-dir {root} is not a folder",
            hint=f"use --data-dir with the folder of {title}, or remove --data-dir to download it",
        )
    return Places(title=title, given=True, own=(root,), shared=(), default=usual[0])


def has_archive(places: Places, archive: Archive, path: Path) -> bool:
    """Return whether the file ``path`` exists and is the official archive; warn if it is another.

    Raises:
        RequestError: ``path`` cannot be read, or is another file in ``--data-dir``.
    """
    if not os.path.isfile(path):
        return False
    try:
        fault = archive.fault(path)
    except OSError as error:
        raise cannot_read(path, error) from error
    if fault is None:
        return True
    if places.given:
        raise RequestError(
            f"{path} is not the official archive: {fault}",
            hint=f"delete it, and download {archive.url} to the same folder",
        )
    warnings.warn(f"ignoring {path}, which is not the official archive: {fault}", VitctlWarning, stacklevel=2)
    return False


def check_download(places: Places, urls: Sequence[str], *, allowed: bool, ours: Collection[str] = ()) -> None:
    """Check that a missing data set may be downloaded to the first folder.

    Args:
        places: the searched folders.
        urls: URLs of the archives.
        allowed: whether downloads are allowed.
        ours: names that an interrupted download may have left in ``--data-dir``, which are ignored.

    Raises:
        RequestError: downloads are not allowed, or ``--data-dir`` has other files.
    """
    home = places.own[0]
    if not allowed:
        raise RequestError(
            places.not_found, hint=f"use --data-dir with its folder, or put {', '.join(urls)} into {home}"
        )
    try:
        names = os.listdir(home) if places.given else []
    except OSError as error:
        raise cannot_read(home, error) from error
    if any(not name.startswith(".") and name not in ours for name in names):
        raise RequestError(
            places.not_found,
            hint=f"use --data-dir with its folder, or remove --data-dir to download it to {places.default}",
        )


@contextlib.contextmanager
def downloading(places: Places, archive: Archive, url: str, what: str) -> Iterator[None]:
    """Convert the errors of a download to the first folder; ``what`` names the archives of the data set."""
    home = places.own[0]
    try:
        yield
    except DownloadFailed as reason:
        raise RequestError(
            f"{places.not_found}, and cannot download {url}: {reason}",
            hint=reason.hint or f"use --data-dir if you have a copy, put {what} into {home}, or use --dataset digits",
        ) from reason
    except OSError as error:
        raise not_writable(home, archive, error) from error


def address(archive: Archive, variable: str) -> str:
    """Return the URL to download an archive from.

    Args:
        archive: the archive.
        variable: environment variable with the URL of a folder to download the archive from instead.

    Raises:
        RequestError: the variable is not a valid URL.
    """
    mirror = os.environ.get(variable)
    if not mirror:
        return archive.url
    try:
        parts = urlsplit(mirror)
        sound = parts.scheme in ("http", "https") and parts.hostname and not parts.username and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise RequestError(
            f"{variable} is not an http:// or https:// URL, or has a user name or password",
            hint=f"set {variable} to a URL such as https://HOST/FOLDER, or unset it to download from {archive.url}",
        )
    return f"{mirror.rstrip('/')}/{archive.name}"
