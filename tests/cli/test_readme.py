"""The newcomer's path: the six commands of README.md, run by a shell as they stand there."""

import functools
import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile
import torch

from meta_transformer import MetaTransformerForClassification
from tests.support.snippets import blocks

ROOT = Path(__file__).parents[2]
INSTALL, TRAIN, PREDICT, PACK, DEMO, LOAD = next(
    source.strip().splitlines()
    for source, _ in blocks((ROOT / "README.md").read_text(encoding="utf-8"), "bash")
    if "meta-transformer train" in source
)
CLASSES = [str(digit) for digit in range(10)]


def recordings(folder: Path) -> str:
    """`digits/<class>/<file>.wav`, and `new.wav`, which is not among them; return the class of that one."""
    for word in CLASSES:
        (folder / "digits" / word).mkdir(parents=True)
    if data := os.environ.get("META_TRANSFORMER_DATA"):
        source = Path(data, "audio/fsdd_small/recordings")
        for path in source.glob("*_[0-5].wav"):  # 6 of each digit and speaker
            (folder / "digits" / path.name[0] / path.name).symlink_to(path)
        (folder / "new.wav").symlink_to(source / "7_jackson_15.wav")
        return "7"
    random = np.random.default_rng(0)
    for number in range(300):
        _write_tone(folder / "digits" / CLASSES[number % 10] / f"{number}.wav", number % 10, random)
    _write_tone(folder / "new.wav", 7, random)
    return "7"


def _write_tone(path: Path, label: int, random: np.random.Generator) -> None:
    """A tone of the class's own pitch, at random length and loudness, in noise."""
    time = np.arange(int(8000 * random.uniform(0.2, 0.6))) / 8000
    wave = random.uniform(0.1, 0.5) * np.sin(2 * np.pi * 200 * 1.35**label * time)
    soundfile.write(path, wave + random.normal(0, 0.02, len(time)), 8000, subtype="PCM_16")


class Shell:
    """A shell in a folder, which finds this environment's commands first."""

    def __init__(self, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {"PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
        self.options: dict[str, Any] = {
            "shell": True, "cwd": folder, "text": True, "env": {**os.environ, **variables},
            "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT,
        }  # fmt: skip

    def run(self, command: str) -> str:
        """What a command says, which must succeed."""
        done = subprocess.run(command, **self.options)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def visit(self, command: str) -> str:
        """The page that a command serves until Ctrl-C, which ends it."""
        # Children of tests that run in the background, where a shell ignores Ctrl-C, would ignore it too.
        listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=listen, **self.options)
        assert process.stdout is not None
        try:
            said = next((line for line in process.stdout if "http" in line), "")
            assert said, f"{command} has served nothing"
            with urlopen(re.search(r"http\S+", said)[0]) as page:
                return page.read().decode()
        finally:
            os.killpg(process.pid, signal.SIGINT)
            said, _ = process.communicate(timeout=60)
            assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The folder of a newcomer who has given all commands in order, what each said, and the class of `new.wav`."""
    folder = tmp_path_factory.mktemp("newcomer")
    label, shell = recordings(folder), Shell(folder)
    said = {command: shell.run(command) for command in (TRAIN, PREDICT, PACK)}
    said[DEMO] = shell.visit(DEMO.replace(" demo ", " demo --port 0 "))  # the usual one may be taken on this machine
    said[LOAD] = shell.run(LOAD)
    return {"folder": folder, "label": label, "said": said}


def test_the_first_command_names_what_the_package_offers() -> None:
    """It is not run: this environment has it all, and the machine need not have a network."""
    assert INSTALL == 'pip install ".[all]"'
    assert "all" in (metadata.metadata("meta_transformer").get_all("Provides-Extra") or ())


@pytest.mark.slow
def test_training_prints_an_accuracy_far_above_chance(path: dict[str, Any]) -> None:
    found = re.search(r"^\s*accuracy\s+([01]\.\d+)\s*$", path["said"][TRAIN], re.MULTILINE)
    assert found is not None, path["said"][TRAIN]
    assert float(found[1]) > 0.7, "of ten classes"


@pytest.mark.slow
def test_the_prediction_is_the_class_of_a_new_file(path: dict[str, Any]) -> None:
    assert re.search(rf"new\.wav\s+{path['label']}\s+[01]\.\d+", path["said"][PREDICT]), path["said"][PREDICT]


@pytest.mark.slow
def test_the_pack_has_the_size_that_is_promised(path: dict[str, Any]) -> None:
    size = sum(each.stat().st_size for each in (path["folder"] / "digits-pack").iterdir())
    assert 0.3e6 < size < 0.7e6  # "half a MB"


@pytest.mark.slow
def test_the_demo_serves_a_page(path: dict[str, Any]) -> None:
    assert "gradio" in path["said"][DEMO]


@pytest.mark.slow
def test_the_pack_loaded_in_python_predicts_what_the_checkpoint_does(
    path: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert "\nMetaTransformerForClassification(" in path["said"][LOAD]
    monkeypatch.chdir(path["folder"])
    page, names = (ROOT / "docs/command_line.md").read_text(encoding="utf-8"), {}
    exec(blocks(page)[0][0], names)  # in Python, as the page has it
    assert f"'label': '{path['label']}'" in capsys.readouterr().out
    whole, batch = MetaTransformerForClassification.from_pretrained("runs/digits"), names["processor"](audio="new.wav")
    with torch.no_grad():
        torch.testing.assert_close(names["model"](**batch).logits, whole.eval()(**batch).logits)
