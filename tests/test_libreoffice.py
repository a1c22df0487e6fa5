"""English and Chinese from LibreOffice: how it is read and cleaned, and the real thing."""

import struct

import pytest
from test_fetch_debian import deb

from mha.data import _fetch
from mha.data import libreoffice as module
from mha.data.sentences import SentencePair, references


def catalog(texts: dict[str, str]) -> bytes:
    """A .mo file, by hand: a header, two tables of sizes and places, and the texts."""
    sides = [[text.encode() for text in side] for side in (texts, texts.values())]
    tables, content, place = b"", b"", 28 + 16 * len(texts)
    for side in sides:
        for text in side:
            tables += struct.pack("<2I", len(text), place + len(content))
            content += text + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(texts), 28, 28 + 8 * len(texts), 0, 0)
    return header + tables + content


def interface(**texts) -> list[tuple[str, str]]:
    """The pairs of one message for each keyword, given as (English, Chinese)."""
    messages = {f"{key}\4{english}": chinese for key, (english, chinese) in texts.items()}
    pairs = module.pairs_of_interface({"usr/sw.mo": catalog({"": "Language: zh"} | messages)})
    return [(pair.source, pair.target) for pair in pairs]


def help_pairs(english: str, chinese: str) -> list[tuple[str, str]]:
    pairs = module.pairs_of_help({"guide/wrap.html": english}, {"guide/wrap.html": chinese})
    return [(pair.source, pair.target) for pair in pairs]


def paragraph(text: str, key: str = "par_id1", tag: str = "p") -> str:
    return f'<{tag} id="{key}" class="paragraph" dir="auto">{text}</{tag}>\n'


# The interface


def test_messages_of_a_catalog():
    texts = {"": "Language: zh", "a\4One": "一", "b\4Two\0Twos": "二"}
    assert list(module.messages(catalog(texts))) == [("a\4One", "一"), ("b\4Two\0Twos", "二")]
    for other in (b"", b"\x95\x04\x12\xde" + bytes(30)):
        with pytest.raises(ValueError, match="not a .mo file"):
            list(module.messages(other))


def test_marks_of_keys_go():
    assert interface(
        a=("Re_lative to", "相对于(_L)"),
        b=("_Group text:", "分组文字 (_G):"),
        c=("~Save", "保存(~S)"),
    ) == [("Relative to", "相对于"), ("Group text:", "分组文字:"), ("Save", "保存")]
    assert interface(a=("MY_OWN_NAME", "名称"), b=("Sheets (a)", "工作表 (a)")) == [
        ("Sheets (a)", "工作表 (a)")
    ]


def test_the_program_is_called_by_its_name():
    text = ("Quit %PRODUCTNAME now", "立即退出 PRODUCTNAME")
    assert interface(a=text) == [("Quit LibreOffice now", "立即退出 LibreOffice")]


def test_an_interface_pair_names_its_file():
    (pair,) = module.pairs_of_interface({"usr/sw.mo": catalog({"a\4Size": "大小"})})
    name = "libreoffice-l10n-zh-cn=4:7.4.7-1+deb12u14"
    credit = f"LibreOffice contributors, MPL-2.0 ({name}, sw.mo)"
    assert pair == SentencePair("Size", "大小", credit)


def test_messages_with_several_forms_are_left_out():
    texts = {"a\4One page\0Pages": "页面", "b\4Page": "页"}
    assert [p.source for p in module.pairs_of_interface({"sw.mo": catalog(texts)})] == ["Page"]


# The help


def test_paragraphs_are_plain_text_by_id():
    page = (
        paragraph('<a name="x"></a>Wrap &amp;\n  <span class="emph">flow</span>', "hd_id1", "h1")
        + paragraph("Click it.", "par_idN1A")
        + paragraph('See <img src="a.svg" alt="icon"> here.', "par_id2")
        + paragraph("One<br>Two", "par_id3")
        + paragraph('Press <span hidden="true" id="m" class="MAC">Command</span>', "par_id4")
        + paragraph("Twice", "par_id5")
        + paragraph("twice", "par_id5")
        + paragraph("No text", "bm_id6")
    )
    assert module.paragraphs(page) == {"hd_id1": "Wrap & flow", "par_idN1A": "Click it."}


def test_paragraphs_meet_by_their_ids():
    english = (
        paragraph("Columns", "par_id1") + paragraph("Rows", "par_id2") + paragraph("Cells", "x")
    )
    chinese = paragraph("行", "par_id2") + paragraph("列", "par_id1") + paragraph("页", "par_id3")
    assert help_pairs(english, chinese) == [("Columns", "列"), ("Rows", "行")]
    assert list(module.pairs_of_help({"a.html": english}, {"b.html": chinese})) == []


def test_as_many_sentences_are_cut_apart():
    english = paragraph("Click the e.g. red one. Then press (once) Enter.")
    assert help_pairs(english, paragraph("点击红色。然后按一次回车键。")) == [
        ("Click the e.g. red one.", "点击红色。"),
        ("Then press (once) Enter.", "然后按一次回车键。"),
    ]
    whole = "点击红色，然后按一次回车键。"
    assert help_pairs(english, paragraph(whole)) == [
        ("Click the e.g. red one. Then press (once) Enter.", whole)
    ]
    english = paragraph("(Click the red one.) Then press Enter.")
    assert help_pairs(english, paragraph("（点击红色。）然后按一次回车键。")) == [
        ("(Click the red one.)", "（点击红色。）"),
        ("Then press Enter.", "然后按一次回车键。"),
    ]


def test_a_help_pair_names_its_page():
    page = {"guide/wrap.html": paragraph("Wrap")}
    (pair,) = module.pairs_of_help(page, {"guide/wrap.html": paragraph("环绕")})
    assert pair.attribution.endswith("-help-zh-cn=4:7.4.7-1+deb12u14, guide/wrap.html)")


# What is kept


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("Save the file", "Save the file"),  # no Chinese
        ("A", "一"),  # no word
        ("12:30", "十二点半"),
        ("文件 file", "文件"),
        ("Sending to %1", "发送至 %1"),
        ("of $(ARG1) pages", "文件总共有 $(ARG1) 页"),
        ("Sum of $name$", "总和 $name$"),
        ("<none>", "<无>"),
        ("{name} is new", "{name} 是新的"),
        ("a_b_c is new", "是新的"),
        ("=YEAR(2) returns 1900", "=YEAR(2) 返回数值结果"),
        ("Quit PRODUCTNAME now", "立即退出 PRODUCTNAME"),
        ("Enter the offset value.", "请输入「偏移值。"),
        ("Select a field here.", "选\x8b一个字段。"),
        ("STYLE and TEMPLATE and so on", "STYLE and TEMPLATE 等"),  # hardly Chinese
        ("word " * 41, "词" * 40),
        ("word " * 30, "词" * 81),
        ("OS", "操作系统的名称"),
        ("Sorts the values here", "排序"),
        ("Sorts", ""),
    ],
)
def test_what_is_not_sensible(source, target):
    assert not module.sensible(source, target)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("OS", "系统"),
        ("Scale to 50% & save", "缩放到 50% 并保存"),
        ("It is $ or #", "这是「元」或「号」"),
        ("word " * 40, "词" * 80),
        ("StarWriter object", "StarWriter 的对象"),
    ],
)
def test_what_is_sensible(source, target):
    assert module.sensible(source, target)


# The whole, from packages made here


@pytest.fixture
def packages(tmp_path, monkeypatch):
    base = "usr/share/libreoffice/help/{}/text/a/b.html"
    texts = {"a\4Columns": "列", "b\4Columns": "栏", "c\4_Rows": "行(_R)", "d\4Columns": "列"}
    contents = (
        {module.CATALOGS.replace("*", "sw"): catalog(texts)},
        {base.format("en-US"): paragraph("Rows").encode() + paragraph("Cells", "par_id2").encode()},
        {base.format("zh-CN"): paragraph("行").encode() + paragraph("单元", "par_id2").encode()},
    )
    archives = []
    for old, members in zip((module.INTERFACE, *module.HELP), contents, strict=True):
        archive, content = deb(old.requirement.partition("=")[0], members)
        (tmp_path / archive.file).write_bytes(content)
        archives.append(archive)
    monkeypatch.setenv("MHA_DATA", str(tmp_path))
    monkeypatch.setattr(module, "INTERFACE", archives[0])
    monkeypatch.setattr(module, "HELP", tuple(archives[1:]))
    return archives


def test_no_pair_stands_twice_and_no_source_in_two_parts(packages):
    parts = module.libreoffice_zh(held_out=1, seed=3)
    pairs = [pair for part in parts for pair in part]
    assert references(sorted(pairs)) == {"Cells": ["单元"], "Columns": ["列", "栏"], "Rows": ["行"]}
    assert sum(len(references(part)) for part in parts) == 3 and len(pairs) == 4
    credits = {pair.source: pair.attribution for pair in pairs}
    assert credits["Rows"].endswith("sw.mo)") and credits["Cells"].endswith("a/b.html)")
    assert module.libreoffice_zh(held_out=1, seed=3) == parts
    with pytest.raises(ValueError, match="held_out"):
        module.libreoffice_zh(held_out=2)


def test_a_missing_package_is_refused_in_a_sentence(packages, monkeypatch, tmp_path):
    (tmp_path / packages[2].file).unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="could not fetch libreoffice-help-zh-cn.*MHA_DATA$"):
        module.libreoffice_zh(held_out=1)


# The real ones, fetched by apt-get the first time


@pytest.fixture(scope="module")
def parts():
    for archive in (module.INTERFACE, *module.HELP):
        try:
            _fetch.fetch(archive)
        except RuntimeError as error:
            if "could not fetch" not in str(error):
                raise
            pytest.skip(str(error))
    return module.libreoffice_zh()


@pytest.mark.slow
def test_pairs_are_those_this_was_written_for(parts):
    pairs = [pair for part in parts for pair in part]
    assert len(pairs) == len({pair[:2] for pair in pairs}) == PAIRS
    assert [len(references(part)) for part in parts] == [SOURCES - 2_000, 1_000, 1_000]
    assert len(references(pairs)) == SOURCES
    assert sum(".mo)" in pair.attribution for pair in pairs) == INTERFACE
    assert all(module.sensible(*pair[:2]) for pair in pairs)
    found = references(pairs)
    assert "页眉" in found["Header"] and "自动" in found["Automatic"]
    assert "按 Enter 键。" in found["Press Enter."]
    assert module.libreoffice_zh(seed=1).test != parts.test


PAIRS, SOURCES, INTERFACE = 40_538, 38_169, 18_104


@pytest.mark.slow
@pytest.mark.parametrize("archive", [module.INTERFACE, *module.HELP], ids=lambda a: a.file)
def test_sizes_are_those_of_the_packages(parts, archive):
    assert _fetch.fetch(archive).stat().st_size == archive.size
