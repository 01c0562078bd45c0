"""CONTRIBUTING.md's examples run as they stand there, and what it and the other documents point to exists."""

import importlib
import re
from pathlib import Path
from unittest import mock

import pytest

from zigma_jax.data.sources import OWN
from zigma_jax.networks import NETWORKS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = dict(
    re.findall(r"^### ([^\n]+)\n(?:(?!^###? ).)*?^```python\n(.*?)^```", DOCUMENTS[1].read_text(), re.M | re.S)
)


def test_all_examples_are_found():
    assert list(EXAMPLES) == ["Add an order", "Add a mixer", "Add a frozen network", "Add a data set"]


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs(title, tmp_path, monkeypatch):
    """As a module of its own in an empty directory."""
    name = title.replace(" ", "_").lower()
    path = tmp_path / f"{name}.py"
    path.write_text(EXAMPLES[title])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with mock.patch.dict(OWN), mock.patch.dict(NETWORKS), mock.patch.dict("sys.modules"):
        importlib.import_module(name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith("http"):
            place, _, heading = target.partition("#")
            linked = document.parent / place if place else document
            assert linked.exists(), target
            if heading:
                assert heading in headings(linked), target


def headings(document):
    """The anchors of a document, as they are made on GitHub."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
