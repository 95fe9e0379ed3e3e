"""`meta-transformer demo`: what is found of a sample, and the page that shows it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from meta_transformer.cli.looking import Looker, draw_tokens, token_colours
from meta_transformer.cli.page import make_page
from meta_transformer.registry import list_modalities
from tests.generic.conftest import Case

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Without these, a browser calls for updates; as root it starts without its sandbox alone.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture
def looker(trained: Path) -> Looker:
    return Looker.load(str(trained), None, None, 500)


@pytest.fixture
def page(looker: Looker) -> Iterator[tuple[str, Any]]:
    """The address of a page that is served."""
    made = make_page([looker])
    _, address, _ = made.launch(prevent_thread_lock=True, quiet=True, enable_monitoring=False)
    yield address
    made.close()


def test_colours_are_the_first_three_principal_components() -> None:
    tokens = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    wanted = PCA(3).fit_transform(tokens.numpy())
    colours = 2 * token_colours(tokens) - 1
    for one, other in zip(colours.T, (wanted / np.abs(wanted).max(axis=0)).T, strict=True):
        assert min(np.abs(one - other).max(), np.abs(one + other).max()) < 1e-4  # their signs are not defined


@pytest.mark.parametrize("count", [1, 2, 5])
def test_tokens_that_are_equal_are_grey(count: int) -> None:
    assert token_colours(torch.ones(count, 16)).tolist() == [[0.5] * 3] * count


@pytest.mark.parametrize("modality", list_modalities())
def test_tokens_of_every_modality_are_drawn(modality: str) -> None:
    case = Case(modality, "classification")
    sequence = case.model().model.tokenize(**case.rows(1)[0])
    figure = draw_tokens(sequence, sequence)
    segment = sequence.segments[0]
    real = segment.length if sequence.mask is None else int(sequence.mask[0, segment.columns].sum())
    assert [axes.get_title() for axes in figure.axes] == [f"{real} tokens", f"{real} encoded"]
    assert any(axes.images or axes.collections for axes in figure.axes)


def test_the_data_of_training_is_the_gallery(looker: Looker) -> None:
    assert len(looker.names) == 16
    assert looker.features.shape == (16, 32)


def test_a_limit_spreads_over_the_gallery(trained: Path) -> None:
    found = Looker.load(str(trained), None, None, 4).names
    assert {Path(name).parent.name for name in found} == {"cat", "dog"}
    assert len(found) == 4


def test_a_sample_of_the_gallery_is_its_own_nearest_neighbour(looker: Looker) -> None:
    _, _, neighbours = looker.look(looker.names[5])
    similarities = [similarity for _, similarity in neighbours]
    assert similarities[0] == pytest.approx(1, abs=1e-5)
    assert looker.names[5] in [name for name, similarity in neighbours if similarity > 1 - 1e-5]
    assert similarities == sorted(similarities, reverse=True)


def test_a_prediction_is_that_of_the_model(looker: Looker) -> None:
    _, records, _ = looker.look("woof woof")
    output = looker.model(**looker.processor(text=["woof woof"]))
    assert records[0]["probability"] == pytest.approx(output.logits.softmax(-1).max().item(), abs=1e-6)


def test_the_page_answers_a_typed_text(page: str) -> None:
    from gradio_client import Client

    _, prediction, near, _ = Client(page, verbose=False).predict("run", None, "woof woof", api_name="/look")
    assert {row[0] for row in prediction["data"]} == {"cat", "dog"}
    assert near["data"][0][1] <= 1.0001


def test_what_cannot_be_read_is_said_on_the_page(page: str) -> None:
    from gradio_client import Client

    with pytest.raises(Exception, match="Drop a file first"):
        Client(page, verbose=False).predict("run", None, "", api_name="/look")


def test_models_of_the_same_name_are_refused(looker: Looker) -> None:
    with pytest.raises(ValueError, match="different names"):
        make_page([looker, looker])


def test_a_gallery_is_given_for_each_model_or_none(run: Any, trained: Path) -> None:
    assert "for each of the 1 models" in run(f"demo {trained} --gallery a --gallery b", code=1)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium, such as Debian's package chromium")
def test_a_file_dropped_in_a_browser_is_looked_at(page: str, looker: Looker) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        tab = browser.new_page()
        tab.goto(page)
        tab.set_input_files("input[type=file]", looker.names[0])
        expect(tab.get_by_text("cosine similarity").first).to_be_visible(timeout=60_000)
        expect(tab.get_by_role("gridcell", name="cat/0.txt")).to_be_visible()  # the file itself, and
        expect(tab.get_by_role("gridcell", name="dog", exact=True)).to_be_visible()  # a class, and
        expect(tab.locator("img[alt*='plot']")).to_be_visible()  # its tokens
        browser.close()
