# Every target that needs .venv makes and updates it (with pip in it): again when pyproject.toml changes, not otherwise.
#   make train ARGS="--max-steps 50"        PYTHON=python3.12 make venv

PYTHON ?= python3
ARGS =
BENCH ?= suite

VENV := .venv
RUN  := $(VENV)/bin/python
PYTHON_GPU ?= $(if $(wildcard $(RUN)),$(RUN),$(PYTHON))
# Some machines pin OpenBLAS to an older processor with these two variables, which slows NumPy down.
FAST := env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE

.DEFAULT_GOAL := help
.PHONY: help venv train study test test-gpu sanitize coverage deep mutants lint bench bench-gpu lab notebooks docs clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/app.stamp ## the virtual environment .venv, with what training needs

train: $(VENV)/app.stamp ## train a Conformer on CIFAR-10:  make train ARGS="--data-dir DIR --max-steps 60 --out RUN"
	@$(FAST) $(RUN) -m conformer train $(ARGS)

study: $(VENV)/app.stamp ## train under several seeds, and perhaps several networks:  make study ARGS="OUT --seeds 0 1 2 --max-steps 60"
	@$(FAST) $(RUN) -m conformer study $(ARGS)

# Two threads wherever this runs, so that splitting the rows is tested too. (pytest-xdist was tried on 2 cores: no faster.)
test: lint $(VENV)/docs.stamp ## all checks and tests:  make test ARGS="tests/fused -k conv2d"
	$(FAST) MINIGRAD_THREADS=2 $(RUN) -m pytest $(ARGS)

# On a GPU machine, with any Python that has CuPy, PyTorch, pytest, pytest-timeout, pytest-xdist, hypothesis, safetensors, threadpoolctl and Pillow:
# nothing is installed here. Where such a machine is lent for minutes only, benchmarks/gpu_suite.py says which calls bring everything home, in which
# order. A --timeout=SECONDS given in ARGS is kept by a thread: a signal would wait until a kernel that hangs returns. pytest-benchmark, where it is
# there, warns of -n, and the warning is an error that ends pytest before it has begun.
ON_GPU = tests/backend tests/fused tests/nn tests/optim tests/conformer/test_gpu_steps.py tests/conformer/test_networks.py tests/gpu
ON_GPU += tests/test_base_op.py tests/test_devices.py tests/test_draw.py tests/test_graphs.py
test-gpu: ## the tests of everything on CUDA, on a real GPU:  make test-gpu PYTHON_GPU=python3
	@$(PYTHON_GPU) -m tests.gpu.compile_all
	$(FAST) MINIGRAD_THREADS=2 $(PYTHON_GPU) -m pytest -p no:benchmark --device=gpu -n 8 --timeout-method=thread $(ON_GPU) $(ARGS)

sanitize: ## every CUDA kernel under NVIDIA's compute-sanitizer:  make sanitize PYTHON_GPU=python3 ARGS="--only memcheck --out DIR"
	@$(PYTHON_GPU) -m tests.gpu.compile_all
	@$(PYTHON_GPU) -m tests.gpu.sanitize $(ARGS)

coverage: $(VENV)/test.stamp ## which lines and branches of minigrad/ the tests run; build/coverage.json
	$(FAST) MINIGRAD_THREADS=2 $(RUN) -m pytest --cov --cov-report=term-missing:skip-covered --cov-report=json $(ARGS)

deep: $(VENV)/test.stamp ## the tests that draw examples, with 1,000 examples each:  make deep ARGS="--only tests/fused"
	$(FAST) $(RUN) -m tests.deep $(ARGS)

mutants: $(VENV)/test.stamp ## small wrong changes of the library, which the tests must notice:  make mutants ARGS="--only softmax"
	$(FAST) $(RUN) -m tests.mutants $(ARGS)

lint: $(VENV)/test.stamp ## style, types and the direction of imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)
	$(VENV)/bin/lint-imports

bench: $(VENV)/test.stamp ## the benchmarks of docs/benchmarks.md (about an hour), or one of benchmarks/:  make bench BENCH=ops ARGS="--quick"
	$(FAST) $(RUN) -m benchmarks.$(BENCH) $(ARGS)

bench-gpu: ## the CUDA path on a GPU beside PyTorch; docs/benchmarks_gpu.md:  make bench-gpu PYTHON_GPU=python3
	@$(PYTHON_GPU) -m tests.gpu.compile_all
	$(FAST) $(PYTHON_GPU) -m benchmarks.gpu_suite $(ARGS)

lab: $(VENV)/notebooks.stamp ## the notebooks in JupyterLab, in a browser
	$(FAST) $(RUN) -m jupyterlab $(ARGS) notebooks

notebooks: $(VENV)/test.stamp ## run the notebooks and write their .ipynb files:  make notebooks ARGS="01 05"
	$(FAST) $(RUN) notebooks/build.py $(ARGS)

docs: $(VENV)/docs.stamp ## the documentation as a site, docs/_build/html/index.html
	$(FAST) $(RUN) docs/generate.py
	$(RUN) -m sphinx -q -W --keep-going -b html docs docs/_build/html

clean: ## remove .venv and what was built: after the Python in it has gone or changed, or the folder has moved
	rm -rf $(VENV) build dist docs/_build docs/jupyter_execute

# A .venv with pip in it stays as it is, however it was made; one without was left half-made. Without the ensurepip module (some Linux distributions
# cut it off) the environment is made empty and the system's pip puts a pip into it.
$(VENV)/made.stamp:
	@$(RUN) -m pip --version >/dev/null 2>&1 || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	        echo "minigrad needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || echo missing): make PYTHON=python3.12 ..." >&2; \
	        exit 1; }; \
	    echo "making $(VENV)"; \
	    $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	        $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install --quiet pip; } || { rm -rf $(VENV); exit 1; }; }
	@touch $@

$(VENV)/app.stamp: pyproject.toml | $(VENV)/made.stamp
	@echo "installing the packages that training needs into $(VENV)"
	@$(RUN) -m pip install --quiet --editable '.[app]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(VENV)/made.stamp
	@echo "installing the packages that the tests need into $(VENV)"
	@$(RUN) -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/app.stamp

$(VENV)/notebooks.stamp: pyproject.toml | $(VENV)/made.stamp
	@echo "installing JupyterLab into $(VENV)"
	@$(RUN) -m pip install --quiet --editable '.[notebooks]'
	@touch $@ $(VENV)/app.stamp

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/made.stamp
	@echo "installing the packages that the documentation needs into $(VENV)"
	@$(RUN) -m pip install --quiet --editable '.[docs]'
	@touch $@ $(VENV)/app.stamp
