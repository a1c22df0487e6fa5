"""What GitHub, pre-commit and readers of the citation ask of the files that are meant for them."""

import re
import shlex
import struct
import tomllib

import pytest
import yaml
from bookfiles import ROOT, described

FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
FORMS = [path for path in FORMS if path.name != "config.yml"]
each_form = pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
# GitHub's schema of issue forms: what each type of field takes as attributes, required ones first
FIELDS = {
    "markdown": (["value"], []),
    "input": (["label"], ["description", "placeholder", "value"]),
    "textarea": (["label"], ["description", "placeholder", "value", "render"]),
    "dropdown": (["label", "options"], ["description", "multiple", "default"]),
    "checkboxes": (["label", "options"], ["description"]),
}
TOP = {"name", "description", "title", "labels", "assignees", "projects", "type", "body"}
LANGUAGES = {"python", "text", "shell"}


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf8"))


def text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def faults(form: dict) -> list[str]:
    """What GitHub would refuse in a form, each in a few words."""
    found = [f"{key} is missing" for key in ("name", "description") if not text(form.get(key))]
    found += [f"{key} is unknown" for key in set(form) - TOP]
    fields = form.get("body") or []
    if not any(field.get("type") != "markdown" for field in fields):
        found.append("nothing to fill in")
    for place in ("id", "label"):
        of_fields = [field.get(place) or field.get("attributes", {}).get(place) for field in fields]
        named = [name for name in of_fields if name]
        found += [f"{place} {name!r} is there twice" for name in named if named.count(name) > 1]
    return found + [fault for field in fields for fault in faults_of_field(field)]


def faults_of_field(field: dict) -> list[str]:
    """The same for one field of the body."""
    kind, attributes = field.get("type"), field.get("attributes", {})
    if kind not in FIELDS:
        return [f"type {kind!r} is unknown"]
    required, optional = FIELDS[kind]
    found = [f"{kind} lacks {key}" for key in required if not attributes.get(key)]
    found += [f"{kind} has {key}" for key in set(attributes) - {*required, *optional}]
    found += [
        f"{key} is unknown" for key in set(field) - {"type", "id", "attributes", "validations"}
    ]
    if kind != "markdown" and not re.fullmatch(r"[A-Za-z0-9_-]+", field.get("id", "")):
        found.append(f"{kind} needs an id of letters")
    for key, value in field.get("validations", {}).items():
        found += [f"validations has {key}: {value!r}"] if (key, value) != ("required", True) else []
    options = attributes.get("options", [])
    names = [option.get("label") for option in options] if kind == "checkboxes" else options
    found += [f"option {name!r} is no text" for name in names if not text(name) or name == "None"]
    found += [f"option {name!r} is there twice" for name in names if names.count(name) > 1]
    return found + [f"{key} is no text" for key in ("label", "description", "placeholder", "value")
                    if key in attributes and not text(attributes[key])]  # fmt: skip


def test_there_is_a_form_for_each_kind_of_report():
    assert {path.stem for path in FORMS} == {"book", "checker", "package", "proposal"}
    names = [load(path)["name"] for path in FORMS]
    assert len(set(names)) == len(names)


@each_form
def test_github_takes_the_form(path):
    assert not faults(load(path))


@each_form
def test_a_form_is_short_and_asks_for_no_more_than_it_needs(path):
    fields = [field for field in load(path)["body"] if field["type"] != "markdown"]
    assert 2 <= len(fields) <= 6
    assert any(field.get("validations") for field in fields)
    assert {f["attributes"]["render"] for f in fields if "render" in f["attributes"]} <= LANGUAGES


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda form: form.pop("description"), "description is missing"),
        (lambda form: form.update(about="x"), "about is unknown"),
        (lambda form: form.update(body=form["body"][:1]), "nothing to fill in"),
        (lambda form: form["body"].append(form["body"][1]), "id 'place' is there twice"),
        (lambda form: form["body"][1].update(type="text"), "type 'text' is unknown"),
        (lambda form: form["body"][1]["attributes"].pop("label"), "input lacks label"),
        (lambda form: form["body"][1].update(id="the place"), "input needs an id of letters"),
        (lambda form: form["body"][3]["attributes"]["options"].append(True), "option True is no"),
    ],
)
def test_a_form_that_github_refuses_is_found(change, fault):
    form = load(ROOT / ".github/ISSUE_TEMPLATE/book.yml")
    change(form)
    assert any(found.startswith(fault) for found in faults(form)), faults(form)


def test_the_choice_of_forms_is_one_that_github_takes():
    config = load(ROOT / ".github/ISSUE_TEMPLATE/config.yml")
    assert set(config) <= {"blank_issues_enabled", "contact_links"}
    assert isinstance(config["blank_issues_enabled"], bool)
    for link in config.get("contact_links", []):
        assert set(link) == {"name", "url", "about"} and link["url"].startswith("https://")


def test_files_for_newcomers_name_no_address_of_their_own():
    for path in (ROOT / ".github").rglob("*"):
        if path.suffix in (".yml", ".md") and path.parent.name != "workflows":
            assert not re.search(r"https?://|\S@\S+\.\S", path.read_text(encoding="utf8")), path


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".github/STYLE.md"])
def test_links_between_the_files_lead_somewhere(name):
    said = (ROOT / name).read_text(encoding="utf8")
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", said)
    found = [(ROOT / name).parent / (a or b) for a, b in targets if not (a or b).startswith("http")]
    assert found and not [path for path in found if not path.exists()]


def test_commands_in_the_files_for_newcomers_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    targets = set(" ".join(re.findall(r"^\.PHONY: (.+)$", makefile, re.M)).split())
    files = ("README.md", "CONTRIBUTING.md", ".github/pull_request_template.md")
    said = " ".join((ROOT / name).read_text(encoding="utf8") for name in files)
    named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", said))
    assert len(named) > 8 and named <= targets, named - targets


def test_the_picture_of_the_readme_is_small_and_described():
    said = (ROOT / "README.md").read_text(encoding="utf8")
    assert described(re.search(r'<img [^>]*alt="([^"]+)"', said)[1])
    width = int(re.search(r'<img [^>]*width="(\d+)"', said)[1])
    for name in re.findall(r'(?:src|srcset)="(.+?)"', said):
        data = (ROOT / name).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) < 200_000, name
        assert struct.unpack(">I", data[16:20])[0] == 2 * width, name  # sharp on a fine screen


def test_the_citation_of_the_readme_is_that_of_the_citation_file():
    entry = re.search(r"```bibtex\n(.+?)```", (ROOT / "README.md").read_text("utf8"), re.S)[1]
    fields = dict(re.findall(r"^  (\w+) += \{+(.+?)\}+,?$", entry, re.M))
    cited, config = load(ROOT / "CITATION.cff"), load(ROOT / "_config.yml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    assert fields.pop("author") == " and ".join(who["name"] for who in cited["authors"])
    assert fields.pop("year") == config["copyright"]
    assert fields.pop("url", None) == cited.get("repository-code")
    assert fields.pop("version") == cited["version"] == project["version"]
    assert fields == {key: cited[key] for key in ("title", "license")}


def test_hooks_run_the_parts_of_make_lint_and_fetch_nothing():
    [repository] = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    parts = re.search(r"^lint: (.+)$", makefile, re.M)[1].split()
    assert [shlex.split(hook["entry"]) for hook in repository["hooks"]] == [
        ["make", "-s", part] for part in parts
    ]
    for hook in repository["hooks"]:
        assert hook["language"] == "system" and hook["pass_filenames"] is False
