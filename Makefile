# Every target makes .venv with what it needs if it is missing. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-transformers test-tensorflow test-versions lint format bench clean

demo: $(VENV)/installed
	$(BIN)/python recipes/demo.py --output_dir runs/demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu and not transformers_common and not tensorflow" -n 2 --dist loadscope

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -m "slow or gpu"

test-transformers: $(VENV)/installed
	$(BIN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rfEX -n 2 -m transformers_common tests/transformers_common

test-tensorflow: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test,tensorflow]"
	$(BIN)/python -m pytest -q -m tensorflow

test-versions: $(VENV)/installed
	$(BIN)/python tests/versions/check_versions.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) runs build dist src/*.egg-info

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@
