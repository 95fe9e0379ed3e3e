"""The rules of the house that a machine can check."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "meta_transformer"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

CORE = PROJECT["dependencies"]
GROUPS = PROJECT["optional-dependencies"]
EXTRAS = [line for lines in GROUPS.values() for line in lines]
# What `pip install "meta_transformer[all]"` brings: the rest is for examples, tests and tools.
ALL = [*CORE, *(line for name in GROUPS if name not in ("demo", "dev") for line in GROUPS[name])]

MAX_LINES = 400
TARGETS = {"help", "setup", "demo", "test", "test-all", "lint", "docs"}
# Loaded where they are used: none of them may come with `import meta_transformer` alone.
HEAVY = ["torchvision", "torchaudio", "timm", "torch_geometric", "torchcodec", "av", "pandas", "pyarrow", "soundfile"]
HEAVY += ["PIL", "datasets", "peft", "sklearn", "scipy", "matplotlib", "rich"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def distributions(requirements: Iterable[str]) -> set[str]:
    """The installed distributions that requirements ask for, and those that these ask for in turn."""
    found: set[str] = set()
    queue = [(Requirement(line), {""}) for line in requirements]
    while queue:
        requirement, extras = queue.pop()
        marker = requirement.marker
        key = canonicalize_name(requirement.name)
        if key in found or (marker and not any(marker.evaluate({"extra": extra}) for extra in extras)):
            continue
        try:
            needs = importlib.metadata.requires(key) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(key)
        queue += [(Requirement(line), requirement.extras or {""}) for line in needs]
    return found


def modules(requirements: Iterable[str]) -> set[str]:
    """The names under which `distributions` are imported."""
    wanted = distributions(line for line in requirements if not line.startswith(PROJECT["name"]))
    owners = importlib.metadata.packages_distributions()
    return {module for module in owners if wanted & {canonicalize_name(owner) for owner in owners[module]}}


def imported(paths: Iterable[Path]) -> set[str]:
    """The packages that files import, at the top or inside functions, less the standard library and this one."""
    found: set[str] = set()
    for node in (node for path in paths for node in ast.walk(tree(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {PACKAGE.name}


def run(code: str, *arguments: str) -> str:
    """Run Python code in a process of its own, from the root, and return what it prints."""
    result = subprocess.run(
        [sys.executable, *arguments, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_fits_in_one_reading(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name(path)} has {lines} lines; {MAX_LINES} are the limit, so take a part out of it."


def test_annotations_are_evaluated_where_configurations_and_modules_need_them() -> None:
    """`@strict` and the signatures that transformers reads work with types, not with strings."""
    postponed = [
        name(path)
        for path in FILES
        for node in tree(path).body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    assert postponed == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_public_function_has_a_docstring(path: Path) -> None:
    functions = [node for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    bare = [each.name for each in functions if not each.name.startswith("_") and ast.get_docstring(each) is None]
    assert bare == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_checkpoint_can_run_code(path: Path) -> None:
    """`torch.load` unpickles; with `weights_only=True` it takes tensors and nothing else."""
    for node in ast.walk(tree(path)):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert not re.fullmatch(r"(pickle|dill|joblib)\.(loads?|Unpickler)", called), f"{name(path)}:{node.lineno}"
        if called == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only") == "True", f"{name(path)}:{node.lineno} lacks weights_only=True"


@pytest.fixture(scope="module")
def imports() -> list[set[str]]:
    """What the package adds to the modules of transformers, and all that are there with its training."""
    printed = run(
        "import sys\n"
        "from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel\n"
        "before = set(sys.modules)\n"
        "import meta_transformer\n"
        "print(*set(sys.modules) - before)\n"
        "import meta_transformer.training\n"
        "print(*sys.modules)"
    )
    return [set(line.split()) for line in printed.splitlines()]


def test_the_import_adds_no_heavy_package_to_those_of_transformers(imports: list[set[str]]) -> None:
    packages = {module.partition(".")[0] for module in imports[0]}
    assert "meta_transformer" in packages, "the premise: the import did happen"
    assert sorted(packages & set(HEAVY)) == []


def test_trainer_is_imported_on_demand(imports: list[set[str]]) -> None:
    assert "meta_transformer.training" in imports[1], "the premise: the import did happen"
    assert "transformers.trainer" not in imports[1]


def test_the_package_imports_with_its_core_dependencies_alone(tmp_path: Path) -> None:
    """As after `pip install .` without extras: an environment of links that holds the core and what it asks for."""
    for distribution in map(importlib.metadata.distribution, distributions(CORE)):
        for file in distribution.files or []:
            link = tmp_path / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(distribution.locate_file(file.parts[0])))
    (tmp_path / "meta_transformer").symlink_to(PACKAGE)
    present = run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import importlib.util, meta_transformer\n"
        "meta_transformer.MetaTransformerConfig.tiny()\n"
        f"print(*[name for name in {HEAVY!r} if importlib.util.find_spec(name)])",
        "-I",
        "-S",
    ).split()
    assert not {"torchvision", "torchaudio", "timm", "pandas"} & set(present), "the premise: the extras are absent"


def test_everything_that_is_imported_is_declared() -> None:
    """What happens to be installed here is not there in a fresh environment."""
    elsewhere = [path for folder in ("tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert sorted(imported(FILES) - modules(ALL)) == [], "the package needs what no extra but demo or dev brings"
    local = {"tests"} | {path.stem for folder in ("examples", "benchmarks") for path in (ROOT / folder).iterdir()}
    assert sorted(imported(elsewhere) - modules([*CORE, *EXTRAS]) - local) == []


def test_nothing_at_the_root_shadows_a_dependency() -> None:
    """Python finds what lies in the working directory first, so a folder `tokenizers` would hide Hugging Face's."""
    dependencies = modules([*CORE, *EXTRAS])
    assert {"tokenizers", "datasets", "torch"} <= dependencies, "the premise: the dependencies are known"
    entries = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert sorted(entries & dependencies) == []


def test_the_torch_set_is_pinned_as_one() -> None:
    pins: dict[str, set[SpecifierSet]] = {}
    for requirement in map(Requirement, [*CORE, *EXTRAS]):
        pins.setdefault(requirement.name, set()).add(requirement.specifier)
    for package in ("torch", "torchvision", "torchaudio"):
        assert len(pins[package]) == 1, f"{package} is pinned in different ways: {pins[package]}"
        assert {each.operator for each in next(iter(pins[package]))} == {">=", "<"}, f"{package} needs both bounds"
    assert pins["torchaudio"] == pins["torch"], "torchaudio carries the version of its torch"
    # torchvision's own metadata names the one torch that it was built for.
    needs = next(each for each in map(Requirement, importlib.metadata.requires("torchvision")) if each.name == "torch")
    (exact,) = needs.specifier
    assert next(iter(pins["torch"])).contains(exact.version)
    assert next(iter(pins["torchvision"])).contains(importlib.metadata.version("torchvision"))


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    assert targets == phony == TARGETS
    output = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    listed = {line.split()[1] for line in output.splitlines() if line.startswith("  make ")}
    assert listed == TARGETS


def test_the_ci_script_runs_what_the_readme_explains() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run must be executable"
    commands = re.findall(r"make [a-z-]+", script.read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert commands == ["make lint", "make test"]
    assert [command for command in commands if command not in readme] == []
