# Every target creates the environment that it needs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests of test-all, as an expression of pytest markers.
MARKERS ?= not large
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help

##@ Try it

.PHONY: demo
demo: $(VENV)/.demo ## Run the MNIST example from start to end
	$(BIN)/python examples/mnist.py

.PHONY: few-images
few-images: $(VENV)/.fields ## Fine-tune an ImageNet network with 10 to 100 images per class
	$(BIN)/python examples/few_images.py

.PHONY: reviews
reviews: $(VENV)/.fields ## Fine-tune a language model: frozen, with LoRA, and as a whole
	$(BIN)/python examples/reviews.py

.PHONY: speakers
speakers: $(VENV)/.fields ## Recognize speakers from a few words (needs espeak-ng)
	OMP_NUM_THREADS=1 $(BIN)/python examples/speakers.py

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

##@ Test

.PHONY: test
test: $(VENV)/.dev ## Run the fast tests (under five minutes)
	$(BIN)/python -m pytest -q -m "not slow and not large"

.PHONY: test-all
# These tests fork. PyTorch cannot compute gradients in a fork of a process whose autograd engine has
# started threads, as some other tests do, so they have a process of their own.
FORKING := tests/integration/test_killed_training.py
# Measuring coverage makes tests up to half as slow again, so the slow ones, which cover the same code
# as the fast ones, run without it.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
COVERED := --cov --cov-append --cov-report= --cov-fail-under=0

test-all: $(VENV)/.dev ## Run all tests that CI runs, and measure coverage
	rm -f .coverage
	$(PYTEST) -n 2 --dist loadfile -m "$(MARKERS) and not slow" $(COVERED) --ignore $(FORKING)
	$(PYTEST) -n 2 --dist loadfile -m "$(MARKERS) and slow" --ignore $(FORKING)
	$(PYTEST) -m "$(MARKERS)" $(COVERED) $(FORKING)

.PHONY: coverage
coverage: .coverage ## Print the coverage of the last test-all
	$(BIN)/coverage report

.PHONY: doctest
doctest: $(VENV)/.dev ## Run the examples in the docstrings
	$(BIN)/python -m pytest -q -p no:randomly --doctest-modules src

##@ Check

.PHONY: check
check: lint types layers coverage doctest docs ## Run all checks except the tests

.PHONY: lint
lint: $(VENV)/.dev ## Check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.dev ## Check the types
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes finetunelib --ignoreexternal

.PHONY: layers
layers: $(VENV)/.dev ## Check the import contracts
	$(BIN)/lint-imports --no-logo

##@ Document

.PHONY: docs
docs: $(VENV)/.dev ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -n -T -W --keep-going -q docs docs/_build/html
	@echo "Built docs/_build/html/index.html"

.PHONY: start-test
start-test: ## Follow the Start pages literally, in a clean environment
	$(PYTHON) tests/docs/follow_start.py docs/start/quickstart.md

##@ Release

.PHONY: wheel-test
wheel-test: $(VENV)/.dev ## Build the wheel and test it in a clean environment
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --wheel --outdir dist
	$(BIN)/python tests/packaging/check_wheel.py dist/*.whl
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --disable-pip-version-check -q dist/*.whl pytest
	sh tests/packaging/run_public_tests.sh .venv-wheel/bin/python
	rm -rf .venv-wheel

.PHONY: release-check
release-check: $(VENV)/.dev ## Build a release and test it on every Python here (half an hour)
	$(BIN)/python tests/packaging/release_check.py

##@ Measure

.PHONY: benchmark
benchmark: $(VENV)/.dev ## Measure the numbers in the documentation
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/fit_start.py
	$(BIN)/python benchmarks/fit_memory.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/tutorial.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/cached_features.py
	$(BIN)/python benchmarks/cached_data.py

.PHONY: conformance
conformance: $(VENV)/.dev ## Run all models of torchvision, timm and transformers (two hours)
	$(BIN)/python tests/conformance/heads.py
	$(BIN)/python tests/conformance/freezing.py
	$(BIN)/python tests/conformance/modules.py
	$(BIN)/python tests/conformance/frozen_models.py
	$(BIN)/python tests/conformance/export.py

##@ Tidy up

.PHONY: clean
clean: ## Remove the environments and everything that was built
	rm -rf $(VENV) .venv-wheel dist build docs/_build docs/tutorials runs .coverage .mypy_cache .ruff_cache .pytest_cache

# Not listed: files and targets that the ones above need.

.coverage:
	$(MAKE) test-all

$(VENV)/.demo: pyproject.toml
	@test -f $(VENV)/.dev || $(MAKE) --no-print-directory install EXTRA=examples
	@touch $@

$(VENV)/.fields: pyproject.toml
	@test -f $(VENV)/.dev || $(MAKE) --no-print-directory install EXTRA=fields
	@touch $@

$(VENV)/.dev: pyproject.toml
	@$(MAKE) --no-print-directory install EXTRA=dev
	@touch $@ $(VENV)/.demo

.PHONY: install
install:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "finetunelib needs Python 3.11 or newer, but $(PYTHON) is:" \
	    "`$(PYTHON) --version 2>&1`. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot create a virtual environment (see above)." \
	    "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing finetunelib[$(EXTRA)] into $(VENV): PyTorch takes a few minutes and up to 6 GB."
	@$(PIP) -q -e ".[$(EXTRA)]" || { \
	  echo "The installation failed; see the message of pip above. It needs a network and" \
	    "about 6 GB of disk (free here: `df -h . | awk 'NR==2 {print $$4}'`)." >&2; exit 1; }
