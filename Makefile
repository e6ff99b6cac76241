# Every target makes .venv with what it needs if it is missing. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint format bench audit clean

demo: $(VENV)/installed
	$(BIN)/python recipes/demo.py --output_dir runs/demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu" -n 2 --dist loadscope

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -m "slow or gpu"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed
	$(BIN)/python benchmarks/run_all.py

# What is installed, and what is known against it, where pip-audit is installed and its database can be reached.
audit: $(VENV)/installed
	$(BIN)/python -m pip list
	@$(BIN)/python -m pip_audit --local || echo "not audited clean: see above (offline, or no pip-audit in $(VENV))"

clean:
	rm -rf $(VENV) runs build dist src/*.egg-info

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@
