# Everything is made from a checkout: `make setup` once (the other targets call it), then .venv/bin/imgdist.
.PHONY: setup demo test clients soak fuzz kernels bench lint clean

BIN := .venv/bin
CODE := imgdist supernode agent fuse bench tests

setup:
	@scripts/setup

demo: setup
	$(BIN)/imgdist demo

test: setup
	@scripts/parts test
	$(BIN)/python -m pytest

# Faults of every kind in random order, for SOAK_S seconds; it prints a seed: FAULTS_SEED repeats a run.
SOAK_S ?= 1800

soak: setup
	@scripts/parts test
	$(BIN)/python -m pytest tests/faults/test_soak.py -s --timeout 0 --soak $(SOAK_S)

# Coverage-guided fuzzing of what reads strangers' bytes, SECONDS for each target; TARGETS="tar layer" names some.
SECONDS ?= 60
TARGETS ?=

fuzz: setup
	$(BIN)/python -m pip install --quiet --require-hashes --only-binary :all: -r requirements-fuzz.lock
	$(BIN)/python tests/fuzz --seconds $(SECONDS) $(TARGETS)

# Every registry client that the mirror is tried with, and every way in which a mirror fails them.
clients: setup
	@scripts/parts clients
	$(BIN)/python -m pip install --quiet oras==0.2.43
	$(BIN)/python -m pytest --matrix full tests/integration/test_mirror_clients.py tests/integration/test_mirror_trouble.py

# KERNELS="5.10 6.1" names others than the default.
kernels: setup
	@scripts/kernels $(KERNELS)

bench: setup
	$(BIN)/python -m bench all

lint: setup
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/mypy --strict $(wildcard imgdist supernode agent fuse bench)

clean:
	rm -rf .venv dist bench/out tests/fuzz/out .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
