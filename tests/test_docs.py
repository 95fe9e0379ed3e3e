"""Every Python snippet of README.md and docs/ runs as it stands there.

The blocks of one page run in order in one namespace, in a temporary working directory. A block that opens with
"```python no-run" is compiled and not run; it is for what needs a network, a GPU or minutes.
"""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from meta_transformer.registry import HEADS, MODALITIES
from tests.support.snippets import blocks

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def snippets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The namespace of a page: a module, so that its classes can be found by name; what it registers goes with it."""
    module = ModuleType("snippets")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    for registry in (MODALITIES, HEADS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    return module


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")], ids=name)
def test_the_snippets_of_a_page_run_in_order(page: Path, snippets: ModuleType) -> None:
    for source, runs in blocks(page.read_text(encoding="utf-8")):
        code = compile(source, str(page), "exec")
        if runs:
            exec(code, snippets.__dict__)


def test_the_readme_has_a_snippet_that_runs() -> None:
    assert any(runs for _, runs in blocks((ROOT / "README.md").read_text(encoding="utf-8")))


def test_every_python_fence_is_found() -> None:
    """A fence that the pattern misses would go unchecked without a word."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^[\s>]*(?:```|~~~) *py", text, re.MULTILINE | re.IGNORECASE)
        assert len(blocks(text)) == len(fences), f"{name(page)} has a fence of another form than '```python'"


def test_a_block_that_is_not_run_is_told_apart_and_keeps_its_line() -> None:
    page = "Title\n\n```python no-run\nmodel.push_to_hub()\n```\n\n- item\n\n  ```python\n  x = 1\n  ```\n"
    (first, first_runs), (second, second_runs) = blocks(page)
    assert (first, first_runs) == ("\n\n\nmodel.push_to_hub()\n", False)
    assert (second.count("\n", 0, second.index("x")), second.strip(), second_runs) == (9, "x = 1", True)
