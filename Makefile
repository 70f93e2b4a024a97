# Words that one expects of a checkout. Each forwards to bin/, or to what bin/ has put into .venv.
# What is in ARGS goes to the command: make test ARGS="tests/pipe -k lock"

EXTRAS = check,embedded,serve
CACHES = .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

.PHONY: help install demo test check-system lint format coverage bench clean venv

help: ## these lines
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r word what; do \
	    printf '%-18s %s\n' "$$word" "$$what"; done

install: ## every command: into the venv that is active, else for this user by pipx; EXTRAS=serve for less
	@if [ "$$VIRTUAL_ENV" -ef .venv ]; then echo 'make install: .venv has the commands of this checkout already' >&2; \
	elif [ -n "$$VIRTUAL_ENV$$CONDA_PREFIX" ]; then python -m pip install --only-binary xllamacpp '.[$(EXTRAS)]'; \
	elif command -v pipx >/dev/null; then pipx install --force --pip-args='--only-binary xllamacpp' '.[$(EXTRAS)]'; \
	else echo 'make install: needs pipx (apt install pipx), or an active venv; bin/ needs neither' >&2; exit 1; fi

demo: ## two models talk
	@bin/demo $(ARGS)

test: ## lint and all tests; with ARGS only pytest, with these
	@bin/test $(ARGS)

check-system: ## what is here, what is missing, what to do about it
	@bin/check-system $(ARGS)

lint: venv ## lint, format, types, import contract
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: venv ## format the source
	@.venv/bin/ruff format $(ARGS)

# A test that kills a process may tear what that one has measured, which is then left out: a few of some thousand files.
coverage: venv ## all tests, and which lines they ran: htmlcov/index.html
	@.venv/bin/coverage erase
	@.venv/bin/coverage run -m pytest -n 2 --dist loadfile $(ARGS); status=$$?; \
	.venv/bin/python -W ignore -m coverage combine --quiet && rm -f .coverage.* && .venv/bin/coverage html --quiet && \
	printf 'htmlcov/index.html: %s%% of the lines ran\n' "$$(.venv/bin/coverage report --format=total)" && exit $$status

bench: ## how close the pipes are to what the kernel allows
	@bin/bench $(ARGS)

clean: ## remove what was made in the checkout: .venv, caches, builds, the report of coverage
	@rm -rf .venv .venv.lock build dist htmlcov .coverage .coverage.* $(CACHES)
	@find pipes tests -name __pycache__ -prune -exec rm -rf {} +

venv:
	@sh -c '. bin/.venv.sh; find_checkout bin/test; need_venv dev' make
