"""The card of a table of features: what it says is so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard

from meta_transformer.checkpoints.dataset_card import DESCRIPTION_KEY, describe_features, generate_dataset_card
from meta_transformer.checkpoints.model_card import is_generated, merge_cards


@pytest.fixture
def write(make_pair: Any, tmp_path: Path) -> Any:
    """Write a table of features that are described, under some names of data and model."""

    def make(rows: int = 3, *, data: str = "clips", name: str | None = None, **options: Any) -> Path:
        import pyarrow
        from pyarrow import parquet

        model, processor = make_pair("image")
        options = {"fingerprint": "0123abc", "random_tokenizer": False, **options}
        description = describe_features(model, processor, "image", data=data, name=name, **options)
        vectors = pyarrow.FixedSizeListArray.from_arrays(np.zeros(4 * rows, np.float32), 4)
        table = pyarrow.table({"path": [str(row) for row in range(rows)], "features": vectors})
        table = table.replace_schema_metadata({DESCRIPTION_KEY: json.dumps(description)})
        parquet.write_table(table, tmp_path / "features.parquet")
        return tmp_path / "features.parquet"

    return make


def test_rows_columns_and_size_are_those_of_the_table(write: Any) -> None:
    path = write(1_234)
    text = generate_dataset_card(path, "you/x").text
    assert "1,234 rows" in text
    assert f"{path.stat().st_size:,} bytes" in text
    assert "| `path` | string | () |" in text
    assert "| `features` | float32 | (4,) |" in text


def test_model_processor_and_command_are_named(write: Any, make_pair: Any) -> None:
    text = generate_dataset_card(write(name="you/model", options=["--column", "a b"]), "you/x").text
    assert "[you/model](https://huggingface.co/you/model)" in text
    assert make_pair("image")[0].encoder_fingerprint() in text
    assert "| Fingerprint of model and processor | `0123abc` |" in text
    assert "`ImageProcessor(num_channels=3, " in text
    assert "\nmeta-transformer embed clips --modality image --model you/model --column 'a b'\n" in text


@pytest.mark.parametrize("random", [True, False])
def test_a_tokenizer_is_told_to_be_random_where_it_is(write: Any, random: bool) -> None:
    text = generate_dataset_card(write(name="you/model", random_tokenizer=random), "you/x").text
    assert ("| Tokenizer | random weights, from `--seed` |" in text) == random


def test_paths_stay_private(write: Any, tmp_path: Path) -> None:
    options = ["--call", f"vocab={tmp_path / 'v.txt'}", "--call", "imu_sampling_rate=50"]
    card = generate_dataset_card(
        write(data=str(tmp_path / "clips"), name=str(tmp_path / "run"), options=options), "you/x"
    )
    assert str(tmp_path) not in str(card)
    assert "embed clips --modality image --model run --call vocab=v.txt --call imu_sampling_rate=50\n" in card.text
    assert "`run`, a local checkpoint" in card.text
    assert card.data.source_datasets is None


def test_the_working_folder_is_told_by_its_name(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path / "clips")
    text = generate_dataset_card(write(data=".", name="."), "you/x").text
    assert "| Samples | clips |" in text
    assert "meta-transformer embed clips --modality image --model clips\n" in text


@pytest.mark.parametrize(("rows", "size"), [(999, "n<1K"), (1_000, "1K<n<10K"), (20_000, "10K<n<100K")])
def test_the_metadata_says_what_the_hub_asks_for(write: Any, rows: int, size: str) -> None:
    card = generate_dataset_card(write(rows, data="you/pictures"), "you/x")
    assert DatasetCard(str(card)).data.to_dict() == {
        "tags": ["meta-transformer", "image"],
        "task_categories": ["feature-extraction"],
        "size_categories": size,
        "source_datasets": ["you/pictures"],
    }


def test_a_persons_card_is_kept_and_ours_is_made_anew(write: Any) -> None:
    card = generate_dataset_card(write(), "you/x")
    assert is_generated(str(card))
    assert merge_cards(str(card), card) == str(card)
    assert merge_cards("# My own", card) is None
    assert "license: mit" in (merge_cards("---\nlicense: mit\n---\n", card) or "")


def test_what_is_no_table_of_features_is_refused(tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no Parquet file"):
        generate_dataset_card(tmp_path / "a.parquet", "you/x")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="make it by meta-transformer embed"):
        generate_dataset_card(tmp_path / "b.parquet", "you/x")


def test_a_damaged_footer_is_told_with_the_name_of_the_file(write: Any) -> None:
    path = write()
    content = path.read_bytes()
    path.write_bytes(content[:-200] + b"\xff" * 192 + content[-8:])  # length of the footer and magic bytes are whole
    with pytest.raises(ValueError, match=r"features\.parquet is no Parquet file, or damaged"):
        generate_dataset_card(path, "you/x")


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*absent\.parquet"):
        generate_dataset_card(tmp_path / "absent.parquet", "you/x")
