"""What fetches Debian packages and reads them where they lie, and the bar that shows it."""

import contextlib
import hashlib
import io
import os
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mha.data import _fetch

VERSION = "4:1.0-1"


def tar(members: dict[str, bytes], form: str) -> bytes:
    """As Debian packs it: names begin with ./, folders and links lie among the files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{form}") as box:
        folder = tarfile.TarInfo("./usr/")
        folder.type = tarfile.DIRTYPE
        link = tarfile.TarInfo("./usr/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        box.addfile(folder)
        box.addfile(link)
        for name, content in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            box.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def ar(parts: dict[str, bytes]) -> bytes:
    """An ar archive, by hand: a header of 60 bytes, the content, a byte more where that is odd."""
    found = b"!<arch>\n"
    for name, content in parts.items():
        found += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        found += content + b"\n" * (len(content) % 2)
    return found


def deb(name: str, members: dict[str, bytes], form: str = "xz") -> tuple[_fetch.Archive, bytes]:
    """A tiny package, and how it is to be asked for."""
    control = b"not looked at, and of odd length!"
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": control}
    content = ar(parts | {f"data.tar.{form}": tar(members, form)})
    digest = hashlib.sha256(content).hexdigest()
    archive = _fetch.Archive(f"{name}={VERSION}", f"{name}_1.0-1_all.deb", digest, len(content))
    return archive, content


WORDS = {"usr/share/a.txt": b"or not", "usr/b.txt": b"to be", "usr/c.html": b"<p>"}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Where a stand-in for apt-get finds packages; it does as told in the file "script"."""
    folder = tmp_path / "shop"
    (folder / "bin").mkdir(parents=True)
    stand_in = folder / "bin" / "apt-get"
    stand_in.write_text(
        f'#!/bin/sh\necho "$@ $LC_ALL" > {folder}/asked\n'
        'name="${2%=*}_4%3a1.0-1_all.deb"\n'
        f'cp "{folder}/$name" . && exit 0\n'
        f"cat {folder}/said >&2; exit 100\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MHA_DATA", str(tmp_path / "kept"))
    monkeypatch.setattr(_fetch, "watched", lambda: False)
    return folder


def stock(shop: Path, name: str, **members) -> _fetch.Archive:
    archive, content = deb(name, members or WORDS)
    (shop / f"{name}_4%3a1.0-1_all.deb").write_bytes(content)
    return archive


def kept(shop: Path) -> list[str]:
    return sorted(path.name for path in (shop.parent / "kept").iterdir())


def refusal(archive: _fetch.Archive) -> str:
    with pytest.raises(RuntimeError) as error:
        _fetch.fetch(archive)
    return str(error.value)


# Fetching


def test_a_package_is_fetched_once_and_read(shop, monkeypatch):
    archive = stock(shop, "words")
    path = _fetch.fetch(archive)
    assert path == shop.parent / "kept" / "words_1.0-1_all.deb" and kept(shop) == [path.name]
    assert (shop / "asked").read_text() == f"download words={VERSION} C.UTF-8\n"
    assert _fetch.read(path, ["usr/c.html"]) == {"usr/c.html": b"<p>"}
    monkeypatch.setattr(_fetch.subprocess, "run", None)
    assert _fetch.fetch(archive) == path


def test_without_package_lists_the_error_says_what_to_do(shop):
    (shop / "said").write_text("E: Unable to locate package words\nW: something else\n")
    message = refusal(deb("words", WORDS)[0])
    assert "could not fetch words=4:1.0-1 (E: Unable to locate package words): let" in message
    assert "run apt-get update, or get words_1.0-1_all.deb by other means" in message
    assert message.endswith("in the environment variable MHA_DATA") and ". " not in message
    assert kept(shop) == []


def test_a_version_that_is_gone(shop):
    (shop / "said").write_text("E: Version '4:1.0-1' for 'words' was not found\n")
    assert "(E: Version '4:1.0-1' for 'words' was not found)" in refusal(deb("words", WORDS)[0])


def test_no_apt_get_at_all(shop, monkeypatch, tmp_path):
    archive = stock(shop, "words")
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal(archive)
    assert "words=4:1.0-1 (there is no apt-get here): let" in message and kept(shop) == []


def test_another_content_is_refused_and_not_kept(shop):
    archive = stock(shop, "words")._replace(sha256="0" * 64)
    assert f"its SHA-256 is {stock(shop, 'words').sha256}, expected 0" in refusal(archive)
    assert kept(shop) == []


def test_a_package_put_there_by_hand_needs_no_apt_get(shop, monkeypatch):
    archive, content = deb("words", WORDS)
    (shop / archive.file).write_bytes(content)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MHA_DATA", str(shop))
    assert _fetch.fetch(archive) == shop / archive.file


# Reading


@pytest.mark.parametrize("form", ["xz", "gz"])
def test_members_by_pattern(tmp_path, form):
    path = tmp_path / "words.deb"
    path.write_bytes(deb("words", WORDS, form)[1])
    texts = _fetch.read_all(path, "usr/*.txt")
    assert list(texts.items()) == [("usr/b.txt", b"to be"), ("usr/share/a.txt", b"or not")]
    with pytest.raises(KeyError, match=r"words.deb has no member 'bin/\*'"):
        _fetch.read_all(path, "bin/*")
    for name in ("usr/nowhere.txt", "usr/link.txt"):
        with pytest.raises(KeyError, match=name):
            _fetch.read(path, [name])


def test_members_by_pattern_of_a_tar(tmp_path):
    path = tmp_path / "words.tar.gz"
    path.write_bytes(tar(WORDS, "gz"))
    assert list(_fetch.read_all(path, "*.html")) == ["usr/c.html"]


def test_what_is_no_package_is_refused(tmp_path):
    path = tmp_path / "words.deb"
    for content in (b"", b"!<arch>\n", b"PK\3\4", ar({"debian-binary": b"2.0\n"})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="words.deb is not a Debian package"):
            _fetch.read(path, ["a"])
    path.write_bytes(ar({"data.tar.zst": b"\x28\xb5\x2f\xfd" + bytes(600)}))
    with pytest.raises(ValueError, match="data.tar.zst in words.deb is packed as this Python"):
        _fetch.read(path, ["a"])


# The bar


class Bar(contextlib.AbstractContextManager):
    """Stands in for tqdm."""

    made: list["Bar"] = []

    def __init__(self, total, **_):
        self.total, self.n, self.open = total, 0, True
        Bar.made.append(self)

    def __exit__(self, *_):
        self.open = False

    def update(self, more):
        assert self.open and more >= 0
        self.n += more

    def reaches(self, size):
        end = time.monotonic() + 10
        while self.n != size and time.monotonic() < end:
            time.sleep(0.01)
        return self.n == size


@pytest.fixture
def bars(shop, monkeypatch):
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(_fetch, "watched", lambda: True)
    monkeypatch.setattr(_fetch, "require", lambda *_: SimpleNamespace(tqdm=Bar))
    return Bar.made


def test_the_bar_follows_the_file(shop, bars, monkeypatch, capsys):
    archive, content = deb("words", {"usr/words.txt": os.urandom(5_000)})

    def slowly(command, *, cwd, **_):
        (bar,) = bars
        place = Path(cwd, "partial")
        place.mkdir()
        (place / "copy").write_bytes(content[:700])  # not to be added
        (place / "code.py").write_bytes(content[:2_000])  # nor this
        with (place / "file").open("wb") as file:
            for start, end in ((0, 1_000), (1_000, 3_000)):
                file.write(content[start:end])
                file.flush()
                assert bar.reaches(end)
        Path(cwd, "more").write_bytes(content * 2)  # never above the total
        assert bar.reaches(len(content))
        Path(cwd, archive.file).write_bytes(content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(_fetch.subprocess, "run", slowly)
    _fetch.fetch(archive)
    (bar,) = bars
    assert (bar.total, bar.n, bar.open) == (len(content), len(content), False)
    assert capsys.readouterr().out.startswith(f"fetching {archive.file} with apt-get, to be kept")


def test_the_bar_ends_where_nothing_comes(shop, bars):
    (shop / "said").write_text("E: no\n")
    before = threading.active_count()
    refusal(deb("words", WORDS)[0])
    (bar,) = bars
    assert (bar.n, bar.open) == (0, False) and threading.active_count() == before


def test_an_archive_of_unknown_size(shop, bars):
    archive = stock(shop, "words")
    _fetch.fetch(archive._replace(size=0))
    (bar,) = bars
    assert bar.total is None and bar.n == archive.size


def test_nobody_needs_tqdm_where_nobody_watches(shop, monkeypatch):
    monkeypatch.setattr(_fetch, "require", None)
    assert _fetch.fetch(stock(shop, "words")).exists()


def test_pip_writes_where_the_bar_looks(tmp_path, monkeypatch):
    def run(command, *, env, **_):
        place = Path(env["TMPDIR"])
        assert place.is_absolute() and place.parent == tmp_path / "kept"
        assert command[command.index("--dest") + 1] == f"kept/{place.name}"
        raise OSError("seen")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MHA_DATA", "kept")
    monkeypatch.setattr(_fetch, "watched", lambda: False)
    monkeypatch.setattr(_fetch.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="seen"):
        _fetch.fetch(_fetch.Archive("plays==1.0", "plays-1.0.tar.gz", "0" * 64))
