# `make help` lists what there is. Another interpreter: `make test PYTHON=python3.12`. More for pip: PIP_FLAGS=...
# More for a run or a test: `make run ARGS="seed=1"`, `make test ARGS="-k knn"`.
# Exactly the packages of requirements-locked.txt, in .venv-locked: `make install LOCKED=1`, `make test LOCKED=1`.
PYTHON ?= python3
LOCKED ?=
LOCK := requirements-locked.txt
VENV ?= .venv$(if $(LOCKED),-locked)
BIN := $(VENV)/bin
ARGS ?=
# Processes of `make test`, of one thread each.
WORKERS ?= 2
PIP_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help install run test test-all test-faults test-floors coverage lint types format docs tables attempts resume-matrix lock audit notebooks bench bench-gpu soak does-l-r-help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## make .venv and install the package with what the embedded run needs

run: $(VENV)/.installed  ## pretrain on embedded photographs, evaluate, show the result (minutes, on a CPU)
	$(BIN)/esvit-pretrain experiment=embedded $(ARGS)

test: $(VENV)/.installed-dev  ## the tests that CI runs
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile $(ARGS)

test-all: $(VENV)/.installed-dev  ## every test, whole runs included
	$(BIN)/pytest $(ARGS)

test-faults: $(VENV)/.installed-dev  ## the tests of the table of faults in docs/reliability.md (minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m fault -n $(WORKERS) --dist loadfile $(ARGS)

# `torch>=2.10` in setup.cfg is `torch==2.10` in floors.txt. Some of these versions have no wheel for Python 3.13.
test-floors:  ## `make test` in .venv-floors, with the oldest dependencies that setup.cfg allows
	@mkdir -p .venv-floors
	@sed -nE 's/^    ([a-z0-9-]+)>=([^,]+).*/\1==\2/p' setup.cfg > .venv-floors/floors.txt
	@$(MAKE) --no-print-directory test VENV=.venv-floors PIP_FLAGS='--constraint .venv-floors/floors.txt $(PIP_FLAGS)'

coverage: $(VENV)/.installed-dev  ## `make test`, and which lines of src it does not reach
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile \
		--cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff: bugs, style, format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy --strict over src
	$(BIN)/mypy --strict

format: $(VENV)/.installed-dev  ## let ruff put things right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Search asks for a server: `python -m http.server -d site`. The variable keeps an advertisement of the theme quiet.
docs: $(VENV)/.installed-dev  ## a site in site/: docs/, every command and config group, the programming interface
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

tables: $(VENV)/.installed-dev  ## write the tables of docs/ and the expected accuracies of conf/experiment
	$(BIN)/python docs/tables.py

attempts: $(VENV)/.installed-dev  ## try to get code run by a stranger's files, and print what came of it (minutes)
	$(BIN)/python docs/attempts.py

resume-matrix: $(VENV)/.installed-dev  ## kill trainings, go on, and compare with uninterrupted ones (minutes)
	$(BIN)/python tests/resume_matrix.py $(ARGS)

# The versions are those in .venv, with which the tests have run; `2.14.1+cpu` is `2.14.1` here.
# 3.11.5 because the theme of the site wants it; the package itself does not.
lock: $(VENV)/.installed-dev  ## write requirements-locked.txt: what is installed for the tests, with hashes (uv; asks the network)
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet $(PIP_FLAGS) uv
	$(BIN)/python -m pip freeze --all | sed -nE 's/^([^ ]+==[^ +]+).*/\1/p' > .venv-lock/installed.txt
	.venv-lock/bin/uv pip compile setup.cfg --extra dev --constraints .venv-lock/installed.txt --universal \
		--python-version 3.11.5 --generate-hashes --no-annotate --no-header --no-emit-index-url --quiet \
		--output-file .venv-lock/locked.txt $(ARGS)
	@{ echo "# For Linux on x86-64 and Python 3.11 to 3.13. Written by 'make lock', installed by LOCKED=1."; \
		cat .venv-lock/locked.txt; } > $(LOCK)

# A package that could not be asked about is an error, too.
audit:  ## ask for known weaknesses of the packages in requirements-locked.txt (pip-audit; asks the network)
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet $(PIP_FLAGS) pip-audit
	.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement $(LOCK) $(ARGS)

notebooks: $(VENV)/.installed-dev  ## run the scripts in notebooks/ and keep them as notebooks with outputs
	$(BIN)/python notebooks/execute.py

COMPARE = $(BIN)/python -m benchmarks
bench: $(VENV)/.installed  ## measure losses, tokens, steps, crops, memory, throughput (a quarter of an hour)
	$(BIN)/esvit-bench recipe throughput repeats=3 $(ARGS)
	$(BIN)/esvit-bench memory measured=true datamodule.batch_size=4 $(ARGS)
	$(COMPARE) loss tokens step crops vil repeats=3 $(ARGS)
	$(COMPARE) tokens step backbone=swin_tiny_w14 repeats=3 out=logs/bench/w14 $(ARGS)
	$(COMPARE) step switches backbone=swin_micro_w7 repeats=3 out=logs/bench/micro $(ARGS)

soak: $(VENV)/.installed  ## train for an hour and say whether memory, handles, threads and speed stay (ARGS="minutes=15")
	$(BIN)/python -m benchmarks.soak $(ARGS)

does-l-r-help: $(VENV)/.installed  ## six trainings of experiment=does_l_r_help, for hours; goes on where it was stopped (ARGS="jobs=2")
	$(BIN)/python -m benchmarks.does_l_r_help $(ARGS)

ON_GPU = trainer=gpu batch_size=64 repeats=5
bench-gpu: $(VENV)/.installed-dev  ## the tests that need a GPU, then what docs/benchmarks.md shows of one
	$(BIN)/pytest -k "gpu or kernels" tests/losses/test_kernels.py tests/modules/test_pretrain.py
	$(COMPARE) $(ON_GPU) loss step roofline out=logs/bench/gpu $(ARGS)
	$(COMPARE) $(ON_GPU) step module.compile=true out=logs/bench/gpu/compiled $(ARGS)
	$(COMPARE) $(ON_GPU) kernels out=logs/bench/gpu $(ARGS)
	$(COMPARE) $(ON_GPU) kernels module.compile=true out=logs/bench/gpu/compiled $(ARGS)
	$(COMPARE) $(ON_GPU) tokens backbone.drop_path_rate=0 out=logs/bench/gpu $(ARGS)
	$(COMPARE) trainer=gpu crops batch_size=16 repeats=3 out=logs/bench/gpu $(ARGS)
	$(COMPARE) $(ON_GPU) switches out=logs/bench/gpu $(ARGS)
	$(BIN)/esvit-bench $(ON_GPU) memory measured=true out=logs/bench/gpu $(ARGS)
	$(BIN)/esvit-bench $(ON_GPU) recipe datamodule=device_color out=logs/bench/gpu $(ARGS)
	$(BIN)/esvit-bench $(ON_GPU) recipe module.compile=true datamodule=device_color out=logs/bench/gpu/compiled $(ARGS)
	$(BIN)/esvit-bench trainer=gpu throughput batch_size=128 repeats=3 out=logs/bench/gpu $(ARGS)

ifdef LOCKED
# The same packages for everything. `pip check` tells what the lock lacks, on another system or after a change in setup.cfg.
define install
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
endef
else
install = $(BIN)/python -m pip install --quiet $(PIP_FLAGS) --editable '.[$(1)]'
endif

# A stamp says that the installation is as setup.cfg asks; a change there makes it again.
$(VENV)/.installed: setup.cfg pyproject.toml $(if $(LOCKED),$(LOCK)) | $(BIN)/python
	$(call install,embedded)
	@touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml $(if $(LOCKED),$(LOCK)) | $(BIN)/python
	$(call install,dev)
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "esvit_pl needs Python 3.11 or newer, $(PYTHON) is older: make ... PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
