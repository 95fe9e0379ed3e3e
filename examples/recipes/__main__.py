"""Train one recipe and print its score on the validation split, for choosing options: `python -m recipes audio`.

Run it in `examples/`. The test split is not looked at; `../03_twelve_modalities.py` does that, once.
"""

import argparse
import json
import os
import tempfile
from importlib import import_module
from pathlib import Path

from .base import nano_trunk, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modality")
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    recipe = import_module(f"recipes.{arguments.modality}").recipe(Path(os.environ["META_TRANSFORMER_DATA"]))
    with tempfile.TemporaryDirectory() as folder:
        trunk = nano_trunk(Path(folder, "trunk"))
        row = train(recipe, trunk, Path(folder, "model"), test=False, epochs=arguments.epochs)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
