# The two commands a user needs are `make demo` and `make test`; both make the environment they run in.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check soak clean

demo: $(STAMPS)/run
	rm -rf demo
	$(BIN)/radshot demo --out demo

test: $(STAMPS)/test
	$(BIN)/python -m pytest

check: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_wheel.py tests/test_torch_free.py -p no:cacheprovider

soak: $(STAMPS)/test
	$(BIN)/python -m pytest -m soak

clean:
	rm -rf $(VENV) demo build dist

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || { echo "radshot needs Python 3.11: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch is installed first, so that nothing after it chooses another build.
$(STAMPS)/run: $(BIN)/python pyproject.toml constraints.txt
	mkdir -p $(STAMPS)
	$(PIP) torch
	$(PIP) --editable '.[cpu,dicom]'
	touch $@

$(STAMPS)/test: $(STAMPS)/run
	$(PIP) --editable '.[cpu,dicom,test]'
	touch $@

$(STAMPS)/dev: $(STAMPS)/test
	$(PIP) --editable '.[cpu,dicom,test,dev]'
	touch $@
