# Variables: PYTHON=/path/to/python (3.11 or newer), SEED=N, ARGS="..." handed to the program or to pytest,
# WORKERS=2 processes that share the tests (0: none but pytest's own), EXTRAS=libero,lerobot,wm,kernels,dev of the
# environment, PIP_ARGS="..." handed to pip install (-vv: say what it does).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv system browser quickstart lint test tutorials check-tutorials lab docs clean

EXTRAS ?= libero,lerobot,wm,kernels,dev
WORKERS ?= 2
STAMP := .venv/.complete
BIN := .venv/bin
GL_PACKAGES := libegl1 libegl-mesa0 libgl1-mesa-dri libgl1
NBVAL = $(BIN)/python -m pytest -n 0 --nbval --nbval-sanitize-with tutorials/sanitize.cfg
LIGHT := 02 03 05 08
HAS_BROWSER := command -v chromium || command -v chromium-browser || [ -n "$${CHROMIUM:-}" ]
IS_NEW := import sys; sys.exit(sys.version_info < (3, 11))
HAS_GL := MUJOCO_GL=$${MUJOCO_GL:-egl} $(BIN)/python -c 'import mujoco; mujoco.GLContext(16, 16).make_current()'

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## make .venv, or bring it up to date

# The stamp comes last: an interrupted environment is made anew. Byte code is compiled beside pip, on all cores, and only
# for what is likely to be imported. An activated .venv is not what another one is made with.
$(STAMP): pyproject.toml constraints.txt accerl_wm/pyproject.toml accerl_ext/pyproject.toml
	@python="$${PYTHON:-}"; \
	for candidate in python3.11 python3 python3.12 python3.13; do \
	  [ -n "$$python" ] && break; \
	  case "$$(command -v $$candidate)" in "$(CURDIR)"/.venv/*) continue ;; esac; \
	  if $$candidate -c '$(IS_NEW)' 2>/dev/null; then python=$$candidate; fi; \
	done; \
	"$${python:-false}" -c '$(IS_NEW)' 2>/dev/null || { \
	  echo "AcceRL needs Python 3.11 or newer; $${PYTHON:-python3 on PATH} is not: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }; \
	if [ ! -e $@ ]; then rm -rf .venv; echo "Making .venv with $$($$python --version), a few minutes ..."; $$python -m venv .venv; fi; \
	rm -f $@
	$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt -e ".[$(EXTRAS)]" -e ./accerl_wm -e ./accerl_ext
	@$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|diffusers|transformers/models)/' .venv/lib || true
	@touch $@

system: venv ## make sure that MuJoCo can render without a screen
	@$(HAS_GL) 2>/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && apt-get install -qq -y $(GL_PACKAGES); \
	else \
	  echo "MuJoCo cannot render here: EGL is missing. On Debian or Ubuntu: sudo apt-get update && sudo apt-get install -y $(GL_PACKAGES)" >&2; \
	  exit 1; \
	fi; \
	$(HAS_GL)

quickstart: venv system ## train a small policy to better success, from nothing (SEED=N, ARGS=...)
	$(BIN)/python -m accerl.quickstart $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: venv ## format, style and types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

browser: ## chromium for the tests of notebooks, where this user may install it
	@($(HAS_BROWSER)) >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null && exit 0; \
	fi; \
	echo "no chromium: the tests of notebooks in a browser are skipped; on Debian: sudo apt-get install -y chromium" >&2

test: venv system browser lint ## lint, every test but the slow ones (ARGS="-m slow", ARGS=tests/rl), the light tutorials
	$(BIN)/python -m pytest -n $(WORKERS) --durations 30 $(ARGS)
	$(if $(ARGS),,TQDM_DISABLE=1 $(NBVAL) $(foreach name,$(LIGHT),$(wildcard tutorials/$(name)_*.ipynb)))

check-tutorials: venv system ## execute every tutorial and compare what it prints with what is stored
	TQDM_DISABLE=1 $(NBVAL) tutorials

tutorials: venv system ## execute the tutorials whose source has changed
	$(BIN)/python -m tutorials.build $(ARGS)

lab: venv system ## JupyterLab in tutorials/
	$(BIN)/jupyter lab --notebook-dir tutorials $(ARGS)

docs: venv ## a site of pages, tutorials and docstrings that needs no network: site/index.html; every link is checked
	@$(BIN)/python -c 'import latex2mathml, material, mkdocs_jupyter, mkdocstrings' 2>/dev/null || \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[docs]"
	$(BIN)/python -m docs.generator $(ARGS)

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist site accerl_wm/dist accerl_ext/dist
	find accerl accerl_wm accerl_ext benchmarks docs tests tutorials -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
