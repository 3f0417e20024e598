"""Fetch public data sets from their authors, verified against published checksums."""

from __future__ import annotations

import difflib
import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from latentflows.core.errors import ConfigurationError, DataError

TIMEOUT_SECONDS = 30.0
BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """One file: where it is, and the digest that its authors, or everybody since, publish."""

    url: str
    algorithm: Literal["md5", "sha256"]
    digest: str

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # the mirror in use since the authors' page closed
_FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"

SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist": (
        Source(
            _MNIST + "train-images-idx3-ubyte.gz",
            "sha256",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        Source(
            _MNIST + "train-labels-idx1-ubyte.gz",
            "sha256",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        Source(
            _MNIST + "t10k-images-idx3-ubyte.gz",
            "sha256",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        Source(
            _MNIST + "t10k-labels-idx1-ubyte.gz",
            "sha256",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "fashion_mnist": (
        Source(
            _FASHION + "train-images-idx3-ubyte.gz",
            "sha256",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        Source(
            _FASHION + "train-labels-idx1-ubyte.gz",
            "sha256",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        Source(
            _FASHION + "t10k-images-idx3-ubyte.gz",
            "sha256",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        Source(
            _FASHION + "t10k-labels-idx1-ubyte.gz",
            "sha256",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    "omniglot": (
        Source(_OMNIGLOT + "images_background.zip", "md5", "68d2efa1b9178cc56df9314c21c6e718"),
        Source(_OMNIGLOT + "images_evaluation.zip", "md5", "6b91aef0f799c5bb55b94e3f2daec811"),
    ),
    "cifar10": (Source(_CIFAR + "cifar-10-binary.tar.gz", "md5", "c32a1d4ab5d03f1284b67883e8d87530"),),
}


def download(name: str, root: str | Path, *, sources: Mapping[str, tuple[Source, ...]] = SOURCES) -> Path:
    """Fetch the files of a data set into <root>/<name>/ and return that folder.

    A file that is there already with the right digest is left alone. A new one takes its name only after its
    digest was verified, so an interrupted download leaves nothing behind that looks like data.

    Args:
        name: Name of a data set with a public source.
        root: Folder that `load` is given as `root`.
        sources: Where each data set comes from.

    Raises:
        ConfigurationError: if the data set has no source.
        DataError: if there is no connection, a digest is wrong, or the folder cannot be written.
    """
    check_source(name, sources)
    folder = Path(root) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be made ({error.strerror or error}). Name another `root`."
        ) from None
    for source in sources[name]:
        _fetch(source, folder)
    return folder


def check_source(name: str, sources: Mapping[str, tuple[Source, ...]] = SOURCES) -> None:
    """Refuse a name that has no source.

    Raises:
        ConfigurationError: naming those that have, and the closest of them.
    """
    if name not in sources:
        close = difflib.get_close_matches(name.lower(), sources, n=1)
        needs_none = (
            " Other data sets need none: they are drawn, come with scikit-learn, or are your own files."
        )
        hint = f" Did you mean {close[0]!r}?" if close else needs_none
        raise ConfigurationError(f"No download for {name!r}; expected one of {', '.join(sources)}.{hint}")


def _fetch(source: Source, folder: Path) -> None:
    target = folder / source.file_name
    if target.exists():
        _compare(source, _digest_of(target, source), target, "Delete it to download it anew")
        return
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{target.name}.", delete=False) as partial:
            temporary = Path(partial.name)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}). Name another `root`."
        ) from None
    try:
        digest = _stream(source, temporary)
        _compare(source, digest, source.url, "The file at this address has changed; get it elsewhere")
        temporary.chmod(0o644)  # temporary files are private, data need not be
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _stream(source: Source, target: Path) -> str:
    hasher = hashlib.new(source.algorithm, usedforsecurity=False)
    try:
        with (
            urllib.request.urlopen(source.url, timeout=TIMEOUT_SECONDS) as response,
            target.open("wb") as file,
        ):
            while block := response.read(BLOCK):
                hasher.update(block)
                file.write(block)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{source.url}: cannot be downloaded ({error}). Check the connection, "
            f"or put the file into {target.parent} by hand."
        ) from None
    return hasher.hexdigest()


def _digest_of(path: Path, source: Source) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(
                file, lambda: hashlib.new(source.algorithm, usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None


def _compare(source: Source, digest: str, what: Path | str, fix: str) -> None:
    if digest != source.digest:
        raise DataError(f"{what}: expected {source.algorithm} {source.digest}; got {digest}. {fix}.")
