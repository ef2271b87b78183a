# `make demo` and `make test` need Python >= 3.11 and make; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Tests start hundreds of processes: each would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[lab,test]"
	touch $@

demo: .venv/installed
	mkdir -p demo
	$(BIN)/tuner demo --overwrite -o demo/scan.nxs --technique tomography --frames 64
	$(BIN)/tuner read demo/scan.nxs
	$(BIN)/tuner search demo/scan.nxs -o demo/profile.yaml --budget 30s
	$(BIN)/tuner apply --overwrite demo/profile.yaml demo/scan.nxs demo/out.h5
	$(BIN)/tuner verify demo/profile.yaml demo/out.h5 --against demo/scan.nxs

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest --numprocesses 2 --dist worksteal

# Kills, interrupts, full disks and flipped bits at many more random points than `make test` takes: half an hour.
test-faults: .venv/installed
	TUNER_FAULTS=100 $(BIN)/pytest tests/test_pipeline.py tests/test_kill.py tests/test_kill_modes.py tests/test_writer_safety.py tests/test_several_datasets.py tests/test_eiger.py tests/test_in_place.py tests/test_containers.py

quick: lint
	$(BIN)/pytest -m "not slow"

.PHONY: demo lint test test-faults quick
