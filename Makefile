# make demo   the whole road in one go: draw, train, export, index, query, evaluate
# make box WARDROBE=DIR   trains the models of `nsfse demo` again and packs them with their images into
#                         nsfse/demo/assets; DIR was made by nsfse data prepare wardrobe
# make test   the tests
# make test-numerics   those that train or compute, with the plainest kernels and the other setting of bfloat16
# make test-stores   those of galleries in Milvus, on a real server from its wheel (Linux on x86-64), and in Qdrant
# make kernels   what decides how numbers are rounded on this machine
# make promises   the promises of docs/promises.md, each tried at length: some minutes
# make soak   a server under mixed traffic for ten minutes: memory, files and threads stay level
# make lint   ruff, mypy, import-linter, and the checks of .ci/check_source.py
# make coverage   the tests, with the share of lines and branches that they run; under the floor it fails
# make docs   the docs as a site, in build/site
# Each makes its own virtual environment in .venv when there is none. Needs Python 3.11 or newer: make PYTHON=python3.12 demo
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
WARDROBE ?= wardrobe
BIN := $(VENV)/bin
READY := $(VENV)/.ready

PROMISES := tests/promises tests/unit/training/test_loop.py tests/parity/test_export.py
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo box test test-numerics test-stores promises soak coverage kernels lint docs bench clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^# //p' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nsfse needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,export,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/nsfse demo --train -o $(OUT)

box: $(READY)
	$(BIN)/python export/make_demo_assets.py photos runs/photos data.folder=$(WARDROBE) model.dim=144
	$(BIN)/python export/make_demo_assets.py drawn runs/drawn

test: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) $(ARGS)

test-numerics: $(READY)
	plain=$$($(BIN)/python tests/kernels.py plain) && OMP_NUM_THREADS=1 env $$plain $(PYTEST) -m numerics $(ARGS)

test-stores: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[milvus,qdrant]' milvus
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit/runtime/test_stores.py -k "milvus or qdrant" $(ARGS)

promises: $(READY)
	OMP_NUM_THREADS=1 NSFSE_PROMISES=full $(BIN)/python -m pytest $(PROMISES) $(ARGS)

soak: $(READY)
	OMP_NUM_THREADS=1 NSFSE_SOAK=600 $(BIN)/python -m pytest -s tests/promises/test_p12_p19_soak.py $(ARGS)

coverage: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) --cov --cov-report=term $(ARGS)

kernels: $(READY)
	@$(BIN)/python tests/kernels.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_source.py

docs: $(READY)
	$(BIN)/zensical build --strict --clean
	$(BIN)/python docs/check_site.py build/site

bench: $(READY)
	$(BIN)/python benchmarks/latency.py

clean:
	rm -rf $(VENV) $(OUT) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
