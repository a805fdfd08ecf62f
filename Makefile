PYTHON ?= python3
BIN := .venv/bin

# A reader's backend would keep figures out of the chapters.
unexport MPLBACKEND

.DEFAULT_GOAL := help
.PHONY: help .venv notebooks test bench data train figures chapters constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[.a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.venv: .venv/.installed ## a virtual environment with everything in it (PYTHON=python3.12 chooses a new one's interpreter)

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
	  || { echo "the versions in constraints.txt need Python 3.11 to 3.14, which '$(PYTHON)' is not: try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --no-compile -c constraints.txt -e '.[test]'
	@touch $@

notebooks: .venv ## readers: execute every chapter into build/, with HTML pages and figures
	$(BIN)/python notebooks/build.py --out build
	$(BIN)/vggres figures --out build/figures
	@echo "Open build/index.html in a browser; the figures are in build/figures/"

test: .venv ## lint, unit tests, and every chapter against its stored outputs
	$(BIN)/ruff check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=600 \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg tests notebooks/*.ipynb

bench: .venv ## images a second of the naive loop and of this engine, and their ratio
	$(BIN)/python -m benchmarks

data: .venv ## download and check CIFAR-100
	$(BIN)/vggres data

train: .venv ## train a run of the reports: make train RUN=vgg08 SEED=3
	@test -n "$(RUN)" || { echo "which run? make train RUN=vgg08 SEED=3; '$(BIN)/vggres list' names them all" >&2; exit 2; }
	$(BIN)/vggres train $(RUN) $(if $(SEED),--seed $(SEED))

figures: .venv ## render figures/ from the records
	$(BIN)/vggres figures

chapters: figures ## authors: rebuild figures/, the README's table and notebooks/*.ipynb in place
	$(BIN)/vggres tables --readme README.md
	$(BIN)/python notebooks/build.py

constraints: ## authors: pin the newest versions within pyproject.toml's ranges, of torch those pinned (makes .venv anew)
	rm -rf .venv
	grep -E '^torch(vision)?==' constraints.txt > constraints.tmp
	mv constraints.tmp constraints.txt
	$(MAKE) .venv
	{ $(BIN)/python -c 'import platform as p; print(f"# Made by \"make constraints\" on {p.system()} {p.machine()}, Python {p.python_version()}.")'; \
	  echo '# Exact versions for make and CI; installs nothing by itself, so pins of other platforms do no harm.'; \
	  $(BIN)/pip freeze --exclude-editable --exclude setuptools; } > constraints.tmp
	mv constraints.tmp constraints.txt
	@touch .venv/.installed

clean: ## remove what was rendered and cached; .venv, data and results stay
	rm -rf build .pytest_cache .ruff_cache
	find vggres tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} +
