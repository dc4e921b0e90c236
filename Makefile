# `make demo`, `make test` and `make lint` share one .venv; whichever runs first makes it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TRITON := triton==3.6.0
NEWEST := triton==3.9.0
NUMPY  := numpy<2.4

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:
	@echo "make demo   two patterns end to end, on this machine's CPU, into demo-output/"
	@echo "make test   the whole test suite"
	@echo "make lint   ruff"

demo: $(STAMP)
	$(BIN)/python examples/demo.py

# The kernels are tested a second time with the newest Triton, which lies beside the environment's own.
test: $(STAMP) $(VENV)/newest/.installed
	PYTHONPATH=$(CURDIR)/$(VENV)/newest $(BIN)/python -m pytest -p no:cacheprovider -n 2 tests/test_kernels.py tests/test_kernel_data.py tests/test_triton.py
	$(BIN)/python -m pytest -p no:cacheprovider -n 2 --dist worksteal --durations=15 tests

lint: $(STAMP)
	$(BIN)/python -m ruff check .

clean:
	rm -rf $(VENV) demo-output

# torch comes first, so that nothing below chooses its version; a torch built for CUDA asks for a Triton of its own, hence
# --no-deps, and the last line, which does nothing where the pinned Triton is still there.  Triton 3.6.0's interpreter
# needs numpy < 2.4.
$(STAMP): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.13.0" "$(NUMPY)"
	$(BIN)/python -m pip install --quiet --no-deps "$(TRITON)"
	$(BIN)/python -m pip install --quiet "$(NUMPY)" -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "$(TRITON)"
	touch $@

$(VENV)/newest/.installed: $(STAMP)
	rm -rf $(VENV)/newest
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/newest "$(NEWEST)"
	touch $@
