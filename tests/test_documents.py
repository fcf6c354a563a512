"""What the Markdown files name is there: links, anchors, files and modules."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from paths import ROOT

from serve.cli.main import COMMANDS

PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "training/README.md", "cosmos3_models/demo/README.md")
    for path in ROOT.glob(pattern)
)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "serve|cosmos3_models|tests|benchmarks|training|deploy|docs"
FILE = re.compile(rf"`((?:{FOLDERS})/[\w./*]*)`")
MODULE = re.compile(rf"python -m ((?:{FOLDERS})[\w.]*)")
COMMAND = re.compile(r"(?:^|[`/ ])cosmos3 ([a-z]+)", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(CODE.sub("", (ROOT / page).read_text())):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_and_module_that_is_named_exists(page: Path) -> None:
    text = (ROOT / page).read_text()
    for file in FILE.findall(text):
        assert list(ROOT.glob(file)), file
    for module in MODULE.findall(text):
        assert find_spec(module.rstrip(".")), module
    for command in COMMAND.findall(text):
        assert command in COMMANDS, command


def test_every_page_can_be_reached_from_readme() -> None:
    seen, todo = set(), [(ROOT / "README.md").resolve()]
    while todo:
        page = todo.pop()
        if page not in seen:
            seen.add(page)
            links = (link.partition("#")[0] for link in LINK.findall(page.read_text()))
            todo += [(page.parent / link).resolve() for link in links if link.endswith(".md")]
    assert seen >= {(ROOT / page).resolve() for page in PAGES}
