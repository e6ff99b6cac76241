# Every target makes .venv with what it needs if it is missing. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
DOCS := .venv-docs
GPU_OUTPUT ?= runs/gpu
GPU_SECONDS ?= 590
# What needs neither hours, a GPU, nor packages and sources beyond the package's own.
DEFAULT := "not slow and not gpu and not transformers_common and not tensorflow"

.PHONY: demo test coverage test-slow test-clients test-pages notebooks test-transformers test-tensorflow test-versions test-wheel gpu gpu-rehearsal lint types format docs tutorials bench audit clean

demo: $(VENV)/installed
	$(BIN)/python recipes/demo.py --output_dir runs/demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m $(DEFAULT) --ignore tests/clients -n 2 --dist loadscope

# The same, and the share of lines that the tests run, by file; what they start as processes counts too.
coverage: $(VENV)/installed
	$(BIN)/python -m pip install --quiet "pytest-cov>=7"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m $(DEFAULT) --ignore tests/clients -n 2 --dist loadscope --cov

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -m "slow or gpu"

test-clients: $(CLIENTS)/installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 SE_OFFLINE=true \
		$(CLIENTS)/python/bin/python -m pytest -q tests/clients tests/conversion/test_export.py

# Both pages to try a model, in a headless Chromium: Debian's packages chromium and chromium-driver, or yours on PATH.
test-pages: $(CLIENTS)/installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 SE_OFFLINE=true SCREENSHOTS=runs/screenshots \
		$(CLIENTS)/python/bin/python -m pytest -q tests/clients/test_browser.py

# Runs the notebooks from the first cell to the last; notebooks/execute.py --write keeps the outputs.
notebooks: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test,notebooks]"
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python notebooks/execute.py

test-transformers: $(VENV)/installed
	$(BIN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rfEX -n 2 -m transformers_common tests/transformers_common

test-tensorflow: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test,tensorflow]"
	$(BIN)/python -m pytest -q -m tensorflow

test-versions: $(VENV)/installed
	$(BIN)/python tests/versions/check_versions.py

# The wheel and the source distribution, built, installed in an environment of its own and used outside the repository.
test-wheel: $(VENV)/installed
	$(BIN)/python -m pip install --quiet "setuptools>=77"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_packaging.py

# All that wants a GPU, with the interpreter that is there and without network or .venv: make gpu PYTHON=python3
# CORPUS and TOKENIZER, directories of build_corpus.py and train_tokenizer.py, add a reference pretraining.
gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_run.py --output_dir $(GPU_OUTPUT) --seconds $(GPU_SECONDS) \
		$(if $(CORPUS),--corpus $(CORPUS) --tokenizer $(TOKENIZER))

# The same, tiny, on a CPU.
gpu-rehearsal: $(VENV)/installed
	$(BIN)/python benchmarks/gpu_run.py --output_dir $(GPU_OUTPUT) --rehearse true \
		$(if $(CORPUS),--corpus $(CORPUS) --tokenizer $(TOKENIZER))

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, into build/site; a broken link or anchor fails. Needs no torch: docstrings are read, not imported.
docs: $(DOCS)/installed
	PATH="$(CURDIR)/$(DOCS)/bin:$$PATH" NO_MKDOCS_2_WARNING=1 mkdocs build --strict

# The commands of docs/tutorials and docs/how_to.md as they are written: TUTORIALS=docs/tutorials/finetune.md for one.
tutorials: $(VENV)/installed
	$(BIN)/python -m pip install --quiet onnx onnxscript onnxruntime sentence-transformers
	$(BIN)/python docs/run_tutorials.py $(TUTORIALS)

bench: $(VENV)/installed
	$(BIN)/python benchmarks/run_all.py

# What is installed, and what is known against it, where pip-audit and its database can be reached.
audit: $(VENV)/installed
	$(BIN)/python -m pip list
	@$(BIN)/python -m pip install --quiet pip-audit && $(BIN)/python -m pip_audit --local --progress-spinner off \
		|| echo "not audited clean: see above (offline, or no pip-audit in $(VENV))"

clean:
	rm -rf $(VENV) $(CLIENTS) $(DOCS) runs build dist src/*.egg-info

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(DOCS)/installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		print("\n".join(extras["docs"]))' > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --requirement $(DOCS)/requirements.txt
	touch $@

# Python clients together; transformers 4 for those that have not moved on; Node 20 or newer must be there.
$(CLIENTS)/installed: pyproject.toml
	$(PYTHON) -m venv $(CLIENTS)/python
	$(CLIENTS)/python/bin/python -m pip install --quiet "torch>=2.11,<2.14" --editable ".[test,export,app,clients,distributed]"
	$(PYTHON) -m venv $(CLIENTS)/transformers4
	$(CLIENTS)/transformers4/bin/python -m pip install --quiet "torch>=2.11,<2.14" optimum-onnx onnxruntime "transformers<4.58"
	npm install --silent --ignore-scripts --prefix $(CLIENTS)/node @huggingface/transformers node-llama-cpp
	touch $@
