# make demo | test | test-long | notebooks | bench | table; each creates .venv and installs on first use. PYTHON chooses the interpreter.
PYTHON ?= python3
RUN = .venv/bin/python

demo: .venv/installed
	$(RUN) -m common.demo

test: .venv/installed-tests
	$(RUN) -m ruff check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile -m "not slow"

test-long: .venv/installed-tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

notebooks: .venv/installed-tests
	$(RUN) notebooks/execute.py

bench: .venv/installed-tests
	for script in benchmarks/*.py; do $(RUN) $$script || exit 1; done

table: .venv/installed
	$(RUN) -m common.reproduce table

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.12 or so" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q -e .
	touch $@

.venv/installed-tests: .venv/installed
	$(RUN) -m pip install -q -e ".[test,notebooks]"
	@$(RUN) -m pip install -q numpy cython setuptools wheel && $(RUN) -m pip install -q --no-build-isolation libmr \
		|| echo "libmr does not build here: its comparison tests are skipped, nothing else needs it"
	touch $@

.PHONY: demo test test-long notebooks bench table
