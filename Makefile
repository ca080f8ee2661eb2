# FlowPilot's commands. `make` alone lists them.
# Every target does its own set-up: the first run downloads, later ones need no network.

VENV := .venv
BIN := $(VENV)/bin
export PYTHON
# The tests start hundreds of processes of the command line, each three times faster with its bytecode at hand.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup fetch demo test check format simulate exhaustive model fuzz mutants bench bench-rollout scale kill-loop clean

help:
	@echo 'Examples'
	@echo '  make demo                       run the demo: real Kafka, real PostgreSQL, processes killed on the way'
	@echo '  make test                       run all tests'
	@echo '  make test ARGS="-k supervisor"  run some of them'
	@echo '  make check test                 what a change has to pass'
	@echo ''
	@echo 'Targets'
	@echo '  setup      make .venv with the locked requirements (PYTHON=… chooses the interpreter, 3.11 or later)'
	@echo '  fetch      download Kafka ahead of time'
	@echo '  demo       run the demo'
	@echo '  test       run the tests (ARGS=… goes to pytest)'
	@echo '  check      ruff, mypy, import rules'
	@echo '  format     let ruff format the code'
	@echo '  simulate   the whole pipeline under faults, seed by seed (SEEDS=1000; ARGS="--seed 17" does one again)'
	@echo '  exhaustive take one execution through everything that can come, up to 7 records (ARGS=… other bounds)'
	@echo '  model      explore the commit protocol state by state, two minutes (ARGS=--long: an hour; needs rustc)'
	@echo '  fuzz       give every decoder RUNS=100000 inputs that coverage guides (ARGS=… goes to the campaign)'
	@echo '  mutants    plant defects and show which tests find each (ARGS=… goes to the run)'
	@echo '  bench      measure throughput and latency (ARGS=… goes to the benchmark)'
	@echo '  bench-rollout  measure how long a step waits when one worker among ten serves it'
	@echo '  scale      let workers and engines join and leave under load (ARGS=… goes to the run)'
	@echo '  kill-loop  kill every role again and again under load (ARGS=… goes to the loop)'
	@echo '  clean      remove .venv, caches and the local services'"'"' data'

setup:
	@.ci/setup

# Embedded Kafka is fetched here, where its progress can be seen, and not in the middle of a test.
# Not needed where a broker is given.
fetch: setup
	@[ -n "$${FLOWPILOT_TEST_BOOTSTRAP_SERVERS:-}" ] || $(BIN)/python -m flowpilot.local fetch

demo: fetch
	@$(BIN)/python -m examples.demo $(ARGS)

test: fetch
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

simulate: setup
	@PYTHONPATH=.:agents:schemas $(BIN)/python -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: fetch
	@$(BIN)/python -m benchmarks.w1 $(ARGS)

bench-rollout: fetch
	@$(BIN)/python -m benchmarks.rollout $(ARGS)

scale: fetch
	@$(BIN)/python -m tests.scaling $(ARGS)

exhaustive: setup
	@$(BIN)/python -m tests.exhaustive $(ARGS)

model: setup
	@$(BIN)/python -m tests.model $(ARGS)

kill-loop: fetch
	@$(BIN)/python -m tests.chaos.kill_loop $(ARGS)

fuzz: setup
	@.ci/setup-fuzz
	@$(BIN)/python -m tests.fuzz --runs $${RUNS:-100000} $(ARGS)

mutants: fetch
	@$(BIN)/python -m tests.mutants $(ARGS)

clean:
	@if [ -d .flowpilot ] && [ -x $(BIN)/python ]; then $(BIN)/python -m flowpilot.local remove; fi
	rm -rf $(VENV) .flowpilot .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
