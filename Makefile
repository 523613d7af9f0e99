# One word per chore. Every target sets up what it needs in .venv, to the versions in constraints.txt.

PYTHON ?= python3
# An environment keeps the Python that it was made with: one that is asked for has its own, `.venv-python3.13` say.
VENV := .venv$(if $(filter command,$(origin PYTHON)),-$(notdir $(PYTHON)))
CONSTRAINTS ?= --constraint constraints.txt
BIN := $(VENV)/bin
TOO_OLD := 'Python 3.11 or newer is needed; $(PYTHON) is ' + sys.version.split()[0] + '; make PYTHON=python3.12, say'
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS)

# On a machine with an accelerator: make demo JAX_PLATFORMS=tpu (or cuda). libtpu is there for its compiler, so nothing may look for a TPU.
export JAX_PLATFORMS ?= cpu
export TPU_SKIP_MDS_QUERY ?= 1

.PHONY: demo test coverage check lint fast newest release docs docs-build fuzz campaign format bench clean browser

demo: $(VENV)/core  ## the whole story on the bundled encoder: table, build/demo/results.json, build/demo/report.html
	$(BIN)/regcache demo --out build/demo

TESTS := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/dev browser  ## all tests
	$(TESTS) --durations=40 tests

coverage: $(VENV)/dev browser  ## all tests, a third slower: they must reach 90 % of regcache_jax and converters
	$(BIN)/python -m coverage erase
	$(TESTS) --cov --cov-report= tests
	$(BIN)/python -m coverage report --skip-covered --fail-under=90

check: $(VENV)/dev  ## format, lint, types, the floors of the house and the fast tests, side by side: about a minute
	$(MAKE) --jobs 2 --output-sync fast lint

lint: $(VENV)/dev  ## format, lint, the floors of the house and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/floors && mkdir -p build/floors && cp -rp regcache_jax pyproject.toml build/floors
	cp -rp configs converters build/floors/regcache_jax && cd build/floors && PYTHONPATH=. $(CURDIR)/$(BIN)/lint-imports --no-logo
	cd build/floors && $(CURDIR)/$(BIN)/mypy --cache-dir $(CURDIR)/build/mypy

fast: $(VENV)/dev  ## the fast tests alone
	$(TESTS) --quiet -m "not slow" tests

newest:  ## the fast tests with the newest of all that pyproject.toml allows, in build/newest: for a schedule, with PYTHON=python3.13, say
	rm -rf build/newest
	$(MAKE) VENV=build/newest CONSTRAINTS= fast
	build/newest/bin/python -m pip freeze --exclude-editable

release: $(VENV)/dev  ## sdist and wheel in build/dist, checked and listed; uploading them is left to a person
	rm -rf build/dist
	$(INSTALL) --editable ".[release]"
	$(BIN)/python -m build --no-isolation --outdir build/dist
	$(BIN)/python -m twine check --strict build/dist/*
	$(BIN)/python -m pytest --quiet tests/project/test_wheel.py
	$(BIN)/python -m tarfile --list build/dist/*.tar.gz | grep -v /demo/data/
	$(BIN)/python -m zipfile --list build/dist/*.whl | grep -v /demo/data/

docs: docs-build  ## the documentation site, built strictly and served on port 8000
	$(BIN)/python -m http.server --directory build/site 8000

docs-build: $(VENV)/dev  ## the site in build/site; a link that leads nowhere ends the build
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

COUNT ?= 1000
fuzz: $(VENV)/dev  ## damaged files for every reader, COUNT of each kind (fewer of slow ones); what goes wrong lies in build/fuzz
	PYTHONPATH=tests $(BIN)/python tests/fuzzing.py --count $(COUNT)

campaign: $(VENV)/dev  ## 100 kills, 20 pairs of runs at once, 20 full disks (as root, which may mount them)
	PYTHONPATH=tests $(BIN)/python tests/campaign.py

format: $(VENV)/dev  ## puts the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev  ## the benchmarks behind the figures in docs/: the demo, search cost, TPU cycles, conversion
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/tpu.py
	$(BIN)/python benchmarks/convert.py

clean:  ## removes the environments and everything built
	rm -rf .venv* build dist *.egg-info .coverage*

$(VENV)/core: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and $(TOO_OLD))" && \
		echo "$(PYTHON) -m venv $(VENV)" && $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); exit 1; }
	@echo "installing into $(VENV): a few minutes, once"
	$(INSTALL) --editable .
	touch $@

$(VENV)/dev: $(VENV)/core
	@echo "installing what tests need into $(VENV): a few minutes, once"
	$(INSTALL) --editable ".[dev,torch]"
	touch $@

# The report is opened in a real browser by a test. Debian's Chromium is installed where that is possible.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null; \
	else echo "no Chromium found: the test that opens the report in a browser will fail; install chromium"; fi
