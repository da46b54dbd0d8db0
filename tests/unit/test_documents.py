"""The documents say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asm_celery.states import EventType, diagram
from tests import documents
from tests.named_tests import ROOT, missing_of

PAGES = sorted(documents.DOCS.rglob("*.md"))


@pytest.mark.parametrize("path", documents.documents(), ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    """After a change of the code, ``python -m tests.documents`` writes them anew."""
    text = path.read_text()

    assert documents.up_to_date(text) == text, "run: python -m tests.documents"


def test_every_part_stands_in_one_document() -> None:
    """No table is forgotten, and none is there twice."""
    found = [name for path in documents.documents() for name in documents.parts_of(path.read_text())]

    assert sorted(documents.PARTS) == sorted(found)


def test_the_picture_of_the_states_is_the_tables_own() -> None:
    """docs/explanation/states.md shows exactly what `states.diagram` draws."""
    text = (documents.DOCS / "explanation" / "states.md").read_text()

    blocks = re.findall(r"```mermaid\n(.*?)\n```", text, re.DOTALL)
    assert diagram() == "\n\n".join(blocks)


def test_every_event_type_is_described_once() -> None:
    """docs/reference/events.md has a row, or a word in its last line, for each."""
    text = (documents.DOCS / "reference" / "events.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    [unwritten] = re.findall(r"^Reserved and not written by this release: (.*)\.$", text, re.MULTILINE)
    fields = {"sequence", "type", "data", "attempt", "timestamp", "event_id", "provider", "schema_version"}

    described = [row for row in rows if row not in fields] + re.findall(r"`(\w+)`", unwritten)

    assert sorted(map(str, EventType)) == sorted(described)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "ops" / "README.md"], ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    """A relative link is a file of this checkout."""
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_test_that_is_named_exists(path: Path) -> None:
    """A promise without its test is none."""
    assert [] == missing_of(path.read_text())


def test_the_index_names_every_page() -> None:
    """docs/index.md leads to each of them."""
    index = (documents.DOCS / "index.md").read_text()

    for path in PAGES:
        if path.name != "index.md":
            assert str(path.relative_to(documents.DOCS)) in index


def test_a_decision_has_four_parts_on_one_page() -> None:
    """Context, choice, what we gave up, how we would notice that it was wrong."""
    pages = sorted((documents.DOCS / "adr").glob("*.md"))

    assert [f"{number:04}" for number in range(1, len(pages) + 1)] == [page.name[:4] for page in pages]
    for page in pages:
        headings = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
        assert ["Context", "Choice", "What we gave up", "How we would notice that it was wrong"] == headings
        assert len(page.read_text().splitlines()) <= 80
