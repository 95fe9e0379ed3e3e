"""The command line as processes: stopped by Ctrl-C, killed in the middle, and against a hub."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from meta_transformer import MetaTransformerModel
from meta_transformer.cli import main
from tests.support.hub_stand_in import TOKEN, HubStandIn, Repository
from tests.support.sample_files import write_texts
from tests.support.snippets import blocks

COMMAND = [sys.executable, "-c", "from meta_transformer.cli import main; main()"]


def start(*arguments: object, **variables: str) -> subprocess.Popen:
    """A command that is running."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*arguments: object, code: int = 0, **variables: str) -> str:
    """What a command says, run to its end."""
    process = start(*arguments, **variables)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def stop_when(process: subprocess.Popen, ready: Callable[[], bool], number: int) -> str:
    """Send a signal as soon as something is so; return what the process said."""
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(number)
    return process.communicate(timeout=120)[0]


@pytest.fixture
def training(tmp_path: Path, trunk: str) -> Callable[[str], list[object]]:
    """Arguments of a run with several epochs, into a folder of a name."""
    texts = write_texts(tmp_path / "texts", 40)
    options = ["-m", "text", "--encoder", trunk, "--epochs", 25, "--batch-size", 8]
    return lambda name: ["train", texts, "-o", tmp_path / name, *options]


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())["metrics"]


def checkpoints(folder: Path) -> list[Path]:
    return list((folder / "trainer").glob("checkpoint-*"))


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_go_on_and_the_rerun_ends_as_if_nothing_had_been(training, tmp_path):
    finish(*training("whole"))
    process = start(*training("stopped"))
    said = stop_when(process, lambda: len(checkpoints(tmp_path / "stopped")) > 1, signal.SIGINT)
    assert process.returncode == 130, said
    assert "Stopped and saved at step" in said
    assert "The same command goes on" in said
    assert "Going on from" in finish(*training("stopped"))
    assert metrics(tmp_path / "stopped") == pytest.approx(metrics(tmp_path / "whole"), abs=1e-5)


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_as_if_nothing_had_been(training, tmp_path):
    finish(*training("whole"))
    folder = tmp_path / "killed"
    for count in (1, 5, 12):  # the newest checkpoint may be half written

        def ready(last: int = count) -> bool:
            return any(int(path.name.partition("-")[2]) >= 7 * last for path in checkpoints(folder))

        stop_when(start(*training("killed")), ready, signal.SIGKILL)
        assert not (folder / "results.json").exists()
    assert "Going on from" in finish(*training("killed"))
    assert metrics(folder) == pytest.approx(metrics(tmp_path / "whole"), abs=1e-5)


@pytest.mark.slow
def test_embedding_that_is_killed_goes_on_and_nothing_is_lost_or_done_twice(tmp_path):
    texts = write_texts(tmp_path / "texts", 1_000)
    output = tmp_path / "f.parquet"
    command = ["embed", texts, "-m", "text", "-o", output, "--part-size", 100]
    parts = tmp_path / "f.parquet.parts"
    for count in (3, 9):
        stop_when(start(*command), lambda least=count: len(list(parts.glob("part-*"))) >= least, signal.SIGKILL)
        assert not output.exists()
    assert "Going on: " in finish(*command)
    found = pd.read_parquet(output)
    assert sorted(found["path"]) == sorted(str(path) for path in texts.rglob("*.txt"))
    finish("embed", texts, "-m", "text", "-o", tmp_path / "whole.parquet")
    whole = pd.read_parquet(tmp_path / "whole.parquet").set_index("path").loc[found["path"], "features"]
    np.testing.assert_allclose(np.stack(found["features"]), np.stack(whole), atol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    peaks = []
    code = "import resource; from meta_transformer.cli.app import app; app(standalone_mode=False); "
    code += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    for count in (1_000, 10_000):
        texts = write_texts(tmp_path / f"texts{count}", count)
        options = ["-m", "text", "-o", tmp_path / f"{count}.parquet", "--part-size", 500, "--batch-size", 64]
        done = subprocess.run(
            [sys.executable, "-c", code, "embed", *map(str, [texts, *options])], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split("peak")[-1]) / 1024)  # MiB
    assert peaks[1] - peaks[0] < 30  # the features and names of 18,000 more samples alone are 16 MiB


def variables_for(hub: HubStandIn, home: Path) -> dict[str, str]:
    """What makes a process take the stand-in for the hub."""
    found = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1,localhost"}
    return found | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.mark.slow
def test_push_uploads_model_processor_and_card_and_tells_no_token(trained, tmp_path):
    with HubStandIn() as hub:
        variables = variables_for(hub, tmp_path)
        said = finish("push", trained, "you/texts", **variables)
        said += finish("pack", trained, tmp_path / "pack", "--push", "you/pack", **variables)
        said += finish("info", "you/texts", **variables)
    assert TOKEN not in said
    assert "Uploaded" in said
    assert "cat, dog" in said
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []


@pytest.mark.slow
def test_features_that_were_pushed_load_as_their_card_says(texts, trained, tmp_path):
    with HubStandIn() as hub:
        variables = variables_for(hub, tmp_path)
        finish("embed", texts, "--model", trained, "-o", tmp_path / "f.parquet")
        assert "Uploaded" in finish("push", tmp_path / "f.parquet", "you/features", **variables)
        card = hub.files("datasets/you/features")["README.md"].decode()
        [source] = [source for source, _ in blocks(card)]
        environment = {**os.environ, **variables}
        done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "(32,)", done.stderr
    assert MetaTransformerModel.from_pretrained(trained).encoder_fingerprint() in card
    assert hub.files("datasets/you/features")["f.parquet"] == (tmp_path / "f.parquet").read_bytes()


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_named_on_the_cards_of_model_and_pack(trunk, tmp_path):
    pd.DataFrame({"text": ["meow", "woof"] * 8, "label": ["cat", "dog"] * 8}).to_parquet(tmp_path / "t.parquet")
    with HubStandIn() as hub:
        variables = variables_for(hub, tmp_path / "home")
        hub.repositories["datasets/you/pets"] = Repository({"main": []})
        hub.repositories["datasets/you/pets"].commit(
            "main", "data", {"t.parquet": (tmp_path / "t.parquet").read_bytes()}
        )
        options = ["-m", "text", "--encoder", trunk, "--epochs", 1]
        finish("train", "you/pets", "-o", tmp_path / "run", *options, **variables)
        finish("push", tmp_path / "run", "you/model", **variables)
    finish("pack", tmp_path / "run", tmp_path / "pack")
    cards = [(tmp_path / name / "README.md").read_text() for name in ("run", "pack")]
    for card in (*cards, hub.files("you/model")["README.md"].decode()):
        assert ModelCard(card).data.datasets == ["you/pets"]


def test_help_of_every_command_and_the_version(run):
    for command in ("train", "evaluate", "predict", "embed", "info", "convert", "push", "pack"):
        assert command in run("--help")
        assert "Usage" in run(f"{command} --help")


def test_without_typer_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "meta_transformer.cli.app", raising=False)  # so that it is imported again
    with pytest.raises(SystemExit) as stopped:
        main()
    # A text is printed without traceback, and the process ends with 1.
    assert isinstance(stopped.value.code, str)
    assert 'pip install "meta_transformer[cli]"' in stopped.value.code
