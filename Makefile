# Everything that is done with this project by hand. `make help` lists it.
PYTHON ?= python3
PORT   ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SERVER  = $(BIN)/python -m flows._server
PYTEST  = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
FAST    = OMP_NUM_THREADS=1 $(PYTEST) -q -n auto --maxprocesses 4 --dist loadfile  # a process a core; threads would fight for them

export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format versions bench bench-full proof stop deploy nightly-on nightly-off notify service clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  PYTHON=python3.12 chooses the interpreter of a new .venv; PORT=4300 the port of a new server"
	@echo "  KILLS=200 SEED=1 JOBS=2 are for make proof: how many kills, where they strike, how many places at once"

setup: $(STAMP)  ## make .venv and install what constraints.txt pins
	@:

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)."; \
	  echo "Name another one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "The virtual environment could not be made; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (the first time takes minutes)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## run the embedded demo through Prefect, to its table
	@$(SERVER) demo $(if $(PORT),--port $(PORT))

test: $(STAMP)  ## the fast tests: offline, on the CPU
	@$(FAST)

test-slow: $(STAMP)  ## the other tests
	@OMP_NUM_THREADS=1 $(PYTEST) -q -m slow -n 2 --dist loadfile

check: $(STAMP)  ## lint, types, import contracts, fast tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(FAST)

versions: $(STAMP)  ## record the stages' code after deciding whether their versions rise
	@DPO_RECORD_VERSIONS=1 $(PYTEST) -q tests/test_stage_versions.py

format: $(STAMP)  ## lay the code out
	@$(BIN)/ruff check --quiet --fix .; $(BIN)/ruff format .

bench: $(STAMP)  ## speed and memory against TRL and the seed's loop, in 20 minutes
	@$(BIN)/python -m benchmarks.compare --out benchmarks/latest.json

bench-full: $(STAMP)  ## the same with long prompts, growing data, and a GPU's shapes where there is one; hours
	@$(BIN)/python -m benchmarks.compare --profiles short long --runs 7 --out benchmarks/out/full.json
	@$(BIN)/python -m benchmarks.compare --only scale --shapes small --out benchmarks/out/scale.json
	@$(BIN)/python -m benchmarks.data_stages --pairs 1000000
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { \
	  echo "no GPU: the shapes ctllm and 7b are left out"; exit 0; }; \
	$(BIN)/python -m benchmarks.compare --shapes ctllm --only train score limit memory --out benchmarks/out/ctllm.json; \
	$(BIN)/python -m benchmarks.compare --shapes 7b --profiles long --only train score memory --cap-gib 24 \
	  --checkpointing --together 1 --out benchmarks/out/7b.json

proof: $(STAMP)  ## kill, damage and starve runs of a tiny profile and hold what comes out against one left alone
	@$(BIN)/python -m proof --kills $(or $(KILLS),200) $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS))

deploy: $(STAMP)  ## start what Prefect needs and the server of reports, and deploy; schedules stay on or off
	@$(SERVER) deploy $(if $(PORT),--port $(PORT))

nightly-on: $(STAMP)  ## switch the nightly schedule on
	@$(SERVER) nightly-on $(if $(PORT),--port $(PORT))

nightly-off: $(STAMP)  ## switch it off
	@$(SERVER) nightly-off $(if $(PORT),--port $(PORT))

notify: $(STAMP)  ## send notices of failed runs and late nights to a webhook: URL=https://…
	@DPO_NOTIFY_URL="$${URL-}" $(SERVER) notify $(if $(PORT),--port $(PORT))

service: $(STAMP)  ## write systemd user units for server, worker and reports; PRINT=1 shows them instead
	@$(BIN)/python -m flows._units $(if $(PRINT),print,write) $(if $(findstring command,$(origin NAME)),--name='$(NAME)') $(if $(findstring command,$(origin PORT)),--port='$(PORT)')

stop:  ## cancel the runs under way and stop what was started here
	@test ! -x $(BIN)/python || $(SERVER) stop

clean: stop  ## remove .venv, caches and the server's database; artifacts and data stay
	rm -rf $(VENV) .prefect .hypothesis .mypy_cache .ruff_cache .pytest_cache *.egg-info
