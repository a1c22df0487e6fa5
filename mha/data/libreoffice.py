"""Sentence pairs that people wrote: English and Chinese, from LibreOffice's windows and help."""

import html
import re
import struct
from collections.abc import Iterator
from pathlib import PurePosixPath

from mha.data import _fetch
from mha.data.sentences import SentencePair, Sentences, split_by_source, tidy

VERSION = "4:7.4.7-1+deb12u14"


def _package(name: str, sha256: str, size: int) -> _fetch.Archive:
    file = f"{name}_{VERSION.partition(':')[2]}_all.deb"  # Debian's servers leave the epoch out
    return _fetch.Archive(f"{name}={VERSION}", file, sha256, size)


INTERFACE = _package(
    "libreoffice-l10n-zh-cn",
    "06b2800923811a11ddadc9e1e09ef8bda2a89ba118470403b2f6a897152e0809",
    834_684,
)
HELP = (
    _package(
        "libreoffice-help-en-us",
        "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
        1_753_504,
    ),
    _package(
        "libreoffice-help-zh-cn",
        "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee",
        3_435_780,
    ),
)
CATALOGS = "usr/lib/libreoffice/program/resource/zh_CN/LC_MESSAGES/*.mo"
PAGES = "usr/share/libreoffice/help/{}/text/*.html"

PARAGRAPH = re.compile(r'<(p|h[1-6]) id="((?:par|hd)_id\w+)"[^>]*>(.*?)</\1>', re.DOTALL)
"""A paragraph or heading of a help page, with the id that it has in every language."""

UNCLEAR = re.compile(r"<(?:img|br)\b|\bhidden=")
"""Tags of pictures, of lists in disguise, and of words that only some systems show."""

ACCELERATOR = re.compile(r"\s*\([_~&]\w\)|[_~](?=\w)")
"""What marks the key of a button: "_Delete" in English, "(_D)" behind the words in Chinese."""

LEFTOVER = re.compile(r"[<>{}_~\\|\x80-\x9f\ufffd]|[%$#&=]\w|\$\(|PRODUCT")
"""Markup, code, formulas, and places that the program fills in while it runs."""

HAN = re.compile(r"[\u3400-\u9fff]")
EN_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][)\"”]))\s+(?=[A-Z\"“(])")
ZH_END = re.compile(r"(?:(?<=[。！？])|(?<=[。！？][)）”」]))(?![)）”」])\s*")
"""Where a sentence is over."""


def libreoffice_zh(*, held_out: int = 1_000, seed: int = 0) -> Sentences:
    """English sentences, titles and labels of an office program, and their Chinese translations.

    From the program's interface (menus, dialogs, messages) and its help, whose paragraphs carry
    the same id in both languages; texts with as many sentences here as there are cut into those.
    apt-get fetches the three Debian packages that carry them (6 MB) at first use, with no need of
    rights; they are kept in ``~/.cache/mha``, or where the environment variable MHA_DATA says, and
    read there: nothing is installed or run. Only Debian 12 has this version. What is left out is
    told in `pairs_of_interface`, `pairs_of_help` and `sensible`.

    Args:
        held_out: English texts in ``validation``, and as many in ``test``.
        seed: fixes the split, on every platform.
    Returns: `Sentences`; sources are English, targets simplified Chinese, no pair stands twice.
    Errors: RuntimeError where a package cannot be fetched or is another than expected;
        ValueError for a held_out below 1, or that leaves nothing to train on.
    Source: LibreOffice 7.4.7 by its contributors, MPL-2.0, as packaged by Debian; each pair names
        package and file in ``attribution``.

    Examples:
        >>> import mha
        >>> parts = mha.data.libreoffice_zh()  # doctest: +SKIP

        That needs Debian 12. What it makes of a page of the help, in two languages:

        >>> from mha.data.libreoffice import pairs_of_help
        >>> english = {"save.html": '<p id="par_id1">Save the file. Close it.</p>'}
        >>> chinese = {"save.html": '<p id="par_id1">保存文件。关闭它。</p>'}
        >>> [(pair.source, pair.target) for pair in pairs_of_help(english, chinese)]
        [('Save the file.', '保存文件。'), ('Close it.', '关闭它。')]
    """
    interface, *pages = [_fetch.fetch(archive) for archive in (INTERFACE, *HELP)]
    catalogs = _fetch.read_all(interface, CATALOGS)
    english, chinese = (
        _by_page(_fetch.read_all(path, PAGES.format(language)), language)
        for path, language in zip(pages, ("en-US", "zh-CN"), strict=True)
    )
    found: dict[tuple[str, str], SentencePair] = {}
    for pair in (*pairs_of_interface(catalogs), *pairs_of_help(english, chinese)):
        found.setdefault((pair.source, pair.target), pair)
    return split_by_source(list(found.values()), held_out=held_out, seed=seed)


def pairs_of_interface(catalogs: dict[str, bytes]) -> Iterator[SentencePair]:
    """The pairs of compiled message catalogs, without the marks of keys, cut as those of the help.

    Left out are messages with several forms, for one thing and for many, and what is not
    `sensible`.

    Args: catalogs, the content of .mo files by name.
    """
    for name, catalog in catalogs.items():
        for english, chinese in messages(catalog):
            texts = english.rpartition("\4")[2], chinese  # before the byte 4: where it is used
            if "\0" in english or sum(len(re.findall(r"[_~](?=\w)", text)) > 1 for text in texts):
                continue
            texts = [re.sub("%?PRODUCTNAME", "LibreOffice", text) for text in texts]
            texts = [tidy(ACCELERATOR.sub("", text)) for text in texts]
            yield from _sentences(*texts, _credit(INTERFACE, PurePosixPath(name).name))


def messages(catalog: bytes) -> Iterator[tuple[str, str]]:
    """The messages of a .mo file and their translations, in the file's order.

    Errors: ValueError for other bytes.
    Source: GNU gettext, manual, section "The Format of GNU MO Files".
    """
    magic, _, count, *tables = struct.unpack_from("<5I", catalog.ljust(20))
    if magic != 0x950412DE:
        raise ValueError(f"not a .mo file with its lowest byte first: it begins {catalog[:4]!r}")
    for row in range(count):
        texts = []
        for table in tables:
            size, start = struct.unpack_from("<2I", catalog, table + 8 * row)
            texts.append(catalog[start : start + size].decode("utf8"))
        if texts[0]:  # that of the empty message is about the file
            yield texts[0], texts[1]


def pairs_of_help(english: dict[str, str], chinese: dict[str, str]) -> Iterator[SentencePair]:
    """The pairs of help pages, sentence by sentence where both paragraphs have as many.

    Left out are paragraphs with pictures, with line breaks, with words for some systems only,
    those whose id stands twice on a page, and what is not `sensible`.

    Args: english and chinese, pages as HTML by their path.
    """
    for name, page in english.items():
        other = paragraphs(chinese.get(name, ""))
        for key, text in paragraphs(page).items():
            if key in other:
                yield from _sentences(text, other[key], _credit(HELP[1], name))


def paragraphs(page: str) -> dict[str, str]:
    """The paragraphs and headings of a help page as plain text, by id."""
    found: dict[str, list[str]] = {}
    for match in PARAGRAPH.finditer(page):
        found.setdefault(match[2], []).append(match[3])
    return {
        key: tidy(html.unescape(re.sub(r"<[^>]*>", "", texts[0])))
        for key, texts in found.items()
        if len(texts) == 1 and not UNCLEAR.search(texts[0])
    }


def _sentences(source: str, target: str, credit: str) -> Iterator[SentencePair]:
    """The sensible pairs in two texts, cut into sentences where both have as many."""
    sources, targets = EN_END.split(source), [text for text in ZH_END.split(target) if text]
    if len(sources) != len(targets):
        sources, targets = [source], [target]
    for one, other in zip(sources, targets, strict=True):
        if sensible(one, other):
            yield SentencePair(one, other, credit)


def sensible(source: str, target: str) -> bool:
    """Whether two texts look like a sentence and its translation, both short enough to learn from.

    The English one has a word of two letters and no Chinese character, the other has one, and
    such characters are a fifth of it at least. Neither has markup, code, formulas or placeholders,
    and the quotation marks of the Chinese one come in pairs. At most 200 and 80 characters, and
    neither much longer than the other.
    """
    han = len(HAN.findall(target))
    return (
        len(source) <= 200
        and len(target) <= 80
        and 5 * han >= len(target) > 0
        and len(target) <= 2 * len(source)
        and len(source) <= 8 * len(target)
        and bool(re.search("[A-Za-z]{2}", source))
        and not HAN.search(source)
        and target.count("「") == target.count("」")
        and not LEFTOVER.search(source + "\n" + target)
    )


def _by_page(members: dict[str, bytes], language: str) -> dict[str, str]:
    """Pages by the path that they have in every language."""
    return {
        name.partition(f"/{language}/text/")[2]: page.decode("utf8")
        for name, page in members.items()
    }


def _credit(archive: _fetch.Archive, file: str) -> str:
    return f"LibreOffice contributors, MPL-2.0 ({archive.requirement}, {file})"
