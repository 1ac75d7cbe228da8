# make demo   sets up .venv and runs the main job on people that the program draws itself
# make test   sets up .venv and runs every test
# make lint   ruff and mypy
# make bench  measures this program against named peers

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(VENV)/bin/python run_reid.py

test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(READY)
	$(VENV)/bin/python benchmarks/evaluate.py

$(READY): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
