# make setup   a virtual environment in .venv with everything streamdrop needs
# make demo    track the sample clip (or SOURCE=video BOX=x,y,w,h) into demo/
# make test    the tests;  make lint   ruff and mypy;  make peers   an environment for rival trackers

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PEERS := .venv-peers
SOURCE ?= data_samples/clip.mp4
BOX ?=

.PHONY: setup demo test lint peers clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "streamdrop needs Python 3.10 or newer: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,daemon]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python apps/track_demo.py --source '$(SOURCE)' $(if $(BOX),--box='$(BOX)') --output demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

peers: $(PEERS)/.ready

$(PEERS)/.ready:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet 'opencv-contrib-python-headless>=4.9' 'numpy>=1.26'
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) demo build *.egg-info
