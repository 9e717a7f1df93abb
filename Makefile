# Caudal. `make up` runs it, `make test` tests it; both set up all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SEEDS ?= 1000
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help up setup test test-cluster check format swarm docs screenshots demo-clouds clean bench-%

help:  ## what can be made
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Caudal needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

BUILT_FROM := pyproject.toml setup.py constraints.txt src/caudal/gateway/_wire.c

$(VENV)/.up: $(BUILT_FROM) | $(BIN)/python
	@echo "installing Caudal into $(VENV) (once; about 700 MB with torch)"
	$(PIP) -e '.[train,serve,console,plan]'
	@touch $@

$(VENV)/.setup: $(BUILT_FROM) | $(BIN)/python
	@echo "installing Caudal and its test tools into $(VENV) (once)"
	$(PIP) -e '.[train,serve,console,postgres,huggingface,tracking,aws,azure,hosts,ray,plan,test]'
	@touch $@ $(VENV)/.up

up: $(VENV)/.up  ## train a model over two sites and serve it: the main job
	@exec $(BIN)/caudal up

setup: $(VENV)/.setup  ## make .venv with everything that tests and benchmarks need

test: $(VENV)/.setup  ## all tests, JOBS=2 files of them at a time
	$(BIN)/python -m pytest -m "not cluster" -n $(JOBS) --dist loadfile

CLUSTER := tests/conformance/test_store.py tests/e2e/test_two_stores.py tests/conformance/test_driver.py \
  tests/conformance/test_slurm.py tests/e2e/test_ray_sites.py tests/e2e/test_ray_nodes.py \
  tests/e2e/test_hosts_ray.py tests/e2e/test_demo_clouds.py

test-cluster: $(VENV)/.setup  ## tests that need servers to be installed first: PostgreSQL, Azure's emulator (npm), Slurm, Ray
	$(BIN)/python -m pytest $(CLUSTER)

check: $(VENV)/.setup  ## lint, types, layers, tidy: within a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest tests/tidy

format: $(VENV)/.setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.setup  ## write docs/reference anew from the code
	$(BIN)/python docs/build_reference.py docs/reference

swarm: $(VENV)/.setup  ## SEEDS=1000 simulated days with faults; a failing seed is printed as the command that replays it
	$(BIN)/python -m caudal.simulate --seeds $(SEEDS)

demo-clouds: $(VENV)/.setup  ## a run over two clouds (fakes here), one of which fails and comes back; two to four minutes
	$(BIN)/python examples/two-clouds/demo.py

bench-%: $(VENV)/.setup  ## one benchmark of bench/; its last line is one JSON object
	$(BIN)/python bench/$(subst -,_,$*).py

screenshots: $(VENV)/.setup  ## pictures for the README, taken from the running thing
	$(BIN)/python docs/screenshots.py

clean:  ## remove .venv and caches; the state of fleets is elsewhere and stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build src/*.egg-info src/caudal/gateway/*.so
