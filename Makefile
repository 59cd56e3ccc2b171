# Every task of the project. `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --disable-pip-version-check
TOOLS := .venv-tools
# The first of these that runs: a version manager may offer a name that it cannot start.
PYTHON ?= $(or $(firstword $(foreach name,python3.11 python3.12 python3,$(shell $(name) -c 'print("$(name)")' 2>/dev/null))),python3)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo up test test-fast test-oldest soak gpu gpu-wheels check lint fmt browser lock sbom audit clean

help: ## list the tasks
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## train, attack and report on real images, on this machine, in a few minutes
	@$(BIN)/adap demo

up: $(VENV)/.installed ## run the service on this machine until Ctrl-C
	@$(BIN)/adap up

# One thread a process: two test processes on two cores would otherwise fight over them. What was
# compiled is kept, whatever the shell says.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest
# Four processes on two cores: what waits for services, kills and leases leaves a core to others.
test: $(VENV)/.installed-dev $(TOOLS)/.installed browser ## install what tests need and run all of them
	$(PYTEST) -n 4

test-fast: $(VENV)/.installed-dev ## run what tests the library, in a minute and a half: no server, no browser
	$(PYTEST) -n 2 -m "not slow and not browser" tests/core tests/models

OLDEST_PYTHON ?= python3.12
test-oldest: $(VENV)/.installed-dev ## run what tests the library on OLDEST_PYTHON (python3.12), with the oldest packages allowed
	ADAP_OLDEST_PYTHON=$(OLDEST_PYTHON) $(PYTEST) -rs tests/test_oldest.py

MINUTES ?= 60
soak: $(VENV)/.installed-dev ## kill parts of a service at random, MINUTES (60) of each profile
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m tests.soak --minutes $(MINUTES)

SECONDS ?= 520
OUT ?= build/gpu
DATA ?= ../shared/data
GPU_PYTHON ?= $(or $(wildcard $(BIN)/python),$(PYTHON))
gpu: ## on a machine with a GPU: check it, time training, then Table 2 of the paper, SECONDS (520) in all
	@set -- build/gpu-wheels/*.whl; [ ! -e "$$1" ] || $(GPU_PYTHON) -m pip install --quiet --no-index \
		--no-deps --upgrade --disable-pip-version-check --target build/gpu-site "$$@"
	PYTHONPATH=build/gpu-site:. $(GPU_PYTHON) -m benchmarks.gpu --seconds $(SECONDS) --data $(DATA) --out $(OUT)

# What training needs beside torch, torchvision, NumPy and Pillow, as the image pins it.
GPU_NEEDS := annotated-types|ijson|pydantic|pydantic-core|safetensors|typing-extensions|typing-inspection
GPU_VERSION ?= 3.12
gpu-wheels: $(BIN)/python ## download what `make gpu` needs beside torch, for a machine without network
	@mkdir -p build/gpu-wheels
	awk '/^[a-z]/ { wanted = /^($(GPU_NEEDS))==/ } wanted' requirements.lock > build/gpu-wheels/needs.txt
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
		--only-binary=:all: --implementation cp --python-version $(GPU_VERSION) \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--dest build/gpu-wheels --requirement build/gpu-wheels/needs.txt

check: lint test ## everything that must hold before a commit

lint: $(VENV)/.installed-dev ## format, lint, types, import contracts, Dockerfile
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

fmt: $(VENV)/.installed-dev ## format the code and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

browser: # page tests need Chromium: installed where that is possible, otherwise they are skipped
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else \
		echo "Chromium is not installed, so the page tests will be skipped."; \
	fi

LOCK := --universal --python-version 3.11 --generate-hashes --quiet --no-emit-index-url \
	--custom-compile-command "make lock"
lock: $(TOOLS)/.installed ## pin every package of the image and of the tests, with its hashes
	$(TOOLS)/bin/uv pip compile pyproject.toml --extra dev $(LOCK) --output-file requirements-dev.lock
	$(TOOLS)/bin/uv pip compile pyproject.toml --extra otel --extra postgres --extra s3 --extra service \
		--constraint requirements-dev.lock $(LOCK) --output-file requirements.lock

sbom: $(TOOLS)/.installed ## list the packages of the image, as CycloneDX, in dist/sbom.json
	@mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml \
		--output-reproducible --output-file dist/sbom.json

audit: $(TOOLS)/.installed ## look for known advisories against the packages of the image
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

.env: ## write random secrets for docker-compose.yml, unless there are some
	@umask 077; while IFS= read -r line; do \
		case "$$line" in [A-Z]*=) line="$$line$$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" ;; esac; \
		printf '%s\n' "$$line"; \
	done < .env.example > $@
	@echo "Wrote .env. ADAP_BOOTSTRAP_ADMIN_KEY in it is the first API key."

clean: ## remove all that these tasks made here, the environment included
	rm -rf $(VENV) $(TOOLS) build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing AdAP into $(VENV): some minutes the first time, 6 GB, most of it PyTorch."
	$(INSTALL) --require-hashes --requirement requirements.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock pyproject.toml | $(BIN)/python
	$(INSTALL) --require-hashes --requirement requirements-dev.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.installed $@

$(TOOLS)/.installed: .ci/tools.txt | $(BIN)/python
	$(BIN)/python -m venv --clear $(TOOLS)
	$(TOOLS)/bin/pip install --disable-pip-version-check --quiet --requirement .ci/tools.txt
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "AdAP needs Python 3.11 or newer, got $$($(PYTHON) --version 2>&1)." \
			"Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
