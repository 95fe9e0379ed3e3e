# Everything that a person or CI runs here. Each command installs what it needs into .venv first, once.

.DEFAULT_GOAL := help
# pip's output goes through a filter, and bash can tell that pip failed.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A stamp says that its extra was installed as pyproject.toml stands.
DEMO_READY := $(VENV)/installed-demo
DEV_READY := $(VENV)/installed-dev

# The small real data sets beside the checkout, where there are any; without them tests and examples make their data.
ifneq ($(wildcard ../shared/data),)
export META_TRANSFORMER_DATA ?= $(abspath ../shared/data)
endif

# Two workers with one thread each: torch's own threads would only take the cores from the other worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# pip prints a page; the large packages are where the time goes, so those are shown. The rest is in install.log.
LARGE := ^ +(Downloading|Using cached) .*\([0-9]{3,}\.[0-9]+ MB\)|^Installing collected packages

define install
	@rm -f $(2)
	@echo "==> Installing meta_transformer[$(1)] into $(VENV): 5.6 GB, some minutes, again only when pyproject.toml changes"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e ".[$(1)]" 2>&1 \
		| tee $(VENV)/install.log | { grep --line-buffered -oE '$(LARGE)' || true; } \
		|| { tail -n 20 $(VENV)/install.log >&2; echo "==> Installation failed; all of it is in $(VENV)/install.log" >&2; exit 1; }
	@touch $(2)
endef

.PHONY: help setup demo test test-all lint docs

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEV_READY) ## Create .venv and install the package with everything that development needs
	@echo "==> Ready: source $(BIN)/activate"

demo: $(DEMO_READY) ## Train a tokenizer and a head on a frozen trunk, on the CPU (examples/01_frozen_transfer.py)
	@echo "==> Running examples/01_frozen_transfer.py; results go to outputs/"
	@$(BIN)/python examples/01_frozen_transfer.py

test: $(DEV_READY) ## Run the fast tests: no network, no GPU
	@echo "==> Running the fast tests, data from $${META_TRANSFORMER_DATA:-generators}"
	@$(PYTEST) -m "not slow and not gpu" --ignore=tests/hf_mixin

test-all: $(DEV_READY) ## Run all tests: also slow ones, GPU ones where there is one, and transformers' own suite
	@echo "==> Running all tests, data from $${META_TRANSFORMER_DATA:-generators}"
	@$(PYTEST) -m ""

lint: $(DEV_READY) ## Check style, format and types
	@echo "==> ruff check"
	@$(BIN)/ruff check
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check
	@echo "==> ty check"
	@$(BIN)/ty check --python $(VENV)

docs: $(DEV_READY) ## Run every Python snippet of README.md and docs/
	@echo "==> Running the snippets of README.md and docs/"
	@$(BIN)/python -m pytest tests/test_docs.py

# The last file that venv writes, so that an interrupted creation is taken up again.
$(BIN)/pip:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) not found; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "meta_transformer needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version); name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	@echo "==> Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(DEMO_READY): pyproject.toml | $(BIN)/pip
	$(call install,demo,$@)

$(DEV_READY): pyproject.toml | $(BIN)/pip
	$(call install,dev,$(DEMO_READY) $@)
