# Every target makes the environment first when it is missing or older than what it is made from.
PYTHON ?= python3
TEST_PROCESSES ?= 2
VENV := .venv
READY := $(VENV)/.ready
RUN := PYTHONUNBUFFERED=1 $(VENV)/bin

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	@echo "making the environment in $(VENV) (some minutes the first time)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,redis,postgres,ray,s3,otel,clients]'
	@touch $@

# The whole loop on documents that are already on this machine: after installation about six minutes on two quiet cores,
# ten to twenty on busy ones.
demo: $(READY)
	$(RUN)/relevance demo

# One thread for each process: the models of tests are so small that a second one costs more than it gives. The tests of
# a file stay in one process; the slow ones, which are first in order, begin first.
test: $(READY)
	OMP_NUM_THREADS=1 $(RUN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

# Measures; prints tables. Quote ratios, not seconds, from a shared machine.
bench: $(READY)
	$(RUN)/pytest -m benchmark -s

clean:
	rm -rf $(VENV) workspace build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
