# Every target makes the environment it needs, in .venv, from python3 (3.10 or newer) alone.

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

PACKAGE := open_clip_transformers
FOLDERS := configuration modeling processing convert_scripts training
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
FLOOR := .venv-floor
# The oldest transformers, five between it and the one before the newest, and the newest, which is that of .venv.
VERSIONS ?= 5.5.0 5.8.1 5.12.1 5.16.1 5.20.2 5.22.2 5.23.0
CAPTIONING := .venv-captioning
PYTEST := python -m pytest -n $(WORKERS) $(ARGS)
# mypy reads the source folders as the one package that they are once installed.
TYPED := build/typed

.DEFAULT_GOAL := help
.PHONY: help demo test test-newest test-floor test-hf test-versions bench style quality clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed  ## convert the digits model, caption and classify its held-out images
	$(BIN)/python examples/demo.py

test: test-newest test-floor  ## all tests on the newest transformers, then the `floor` tests on the oldest

test-newest: .venv/installed  ## the tests on the newest transformers (ARGS="-k name" picks some)
	$(BIN)/$(PYTEST)

test-floor: $(FLOOR)/installed  ## the tests marked `floor` on the oldest supported transformers
	$(FLOOR)/bin/$(PYTEST) -m "floor and not slow"

test-hf: .venv/installed $(FLOOR)/installed  ## transformers' own tests over every class, on the newest and the oldest transformers
	@for python in $(BIN)/python $(FLOOR)/bin/python; do \
		$$python tests/hf_suite/upstream.py && $$python -m pytest -n $(WORKERS) $(ARGS) tests/hf_suite/every_suite.py \
			|| failed="$$failed $$python"; \
	done; test -z "$$failed" || { echo "Failed:$$failed"; exit 1; }

test-versions: $(VERSIONS:%=.venv-versions/%/installed)  ## the main job on eight releases of transformers
	@for python in $(VERSIONS:%=.venv-versions/%/bin/python) $(BIN)/python; do \
		$$python -c 'import transformers; print("transformers", transformers.__version__)'; \
		$$python -m pytest --quiet $(ARGS) tests/test_smoke.py || failed="$$failed $$python"; \
	done; test -z "$$failed" || { echo "Failed:$$failed"; exit 1; }

bench: .venv/installed $(CAPTIONING)/installed  ## measure us and our peers (ARGS="--suite caption" picks a suite)
	$(BIN)/python benchmarks/run.py $(ARGS)

style: .venv/installed  ## format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: .venv/installed  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/$(PACKAGE)
	@ln -s $(foreach file,$(wildcard $(PACKAGE)/*) $(FOLDERS),$(CURDIR)/$(file)) $(TYPED)/$(PACKAGE)/
	MYPYPATH=$(TYPED) $(BIN)/mypy -p $(PACKAGE)

clean:  ## remove environments, caches and build outputs
	rm -rf .venv .venv-versions $(FLOOR) $(CAPTIONING) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# torch and torchvision must be of one build. Where pip is configured with sources beside its index, one of those may
# offer another build of torch alone; then both are taken from the index.
.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(PIP) --upgrade pip
	$(PIP) torch torchvision
	@$(BIN)/python -c 'import torchvision' 2>/dev/null \
		|| PIP_FIND_LINKS= PIP_EXTRA_INDEX_URL= $(PIP) --force-reinstall torch torchvision
	$(PIP) --editable '.[test,dev,plot]'
	-$(BIN)/python tests/hf_suite/upstream.py
	@touch $@

# $(1): an environment that has the packages $(2), with what they need, before all else of .venv.
define make_beside
$(BIN)/python -m venv --clear --without-pip $(1)
@$(1)/bin/python -c 'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "newest.pth").write_text(sys.argv[1])' \
	"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2)
@touch $(1)/installed
endef

# The oldest supported transformers, with the huggingface_hub and tokenizers it needs.
$(FLOOR)/installed: .venv/installed
	$(call make_beside,$(FLOOR),'transformers==5.5.0' 'huggingface_hub<2' 'tokenizers<=0.23.0')
	-$(FLOOR)/bin/python tests/hf_suite/upstream.py

# Each older transformers asks pip for the huggingface_hub and tokenizers that it needs.
.venv-versions/%/installed: .venv/installed
	$(call make_beside,.venv-versions/$*,'transformers==$*')

# The last transformers on which open_clip 3.3.0 writes captions.
$(CAPTIONING)/installed: .venv/installed
	$(call make_beside,$(CAPTIONING),'transformers==4.53.3' 'huggingface_hub<1' 'tokenizers<0.22')
