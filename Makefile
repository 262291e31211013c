# Each target does its own set-up, in a fresh clone too.  The build runs as the user who called make
# (under sudo: SUDO_UID); only what makes network namespaces runs as root: see scripts/as-root.

ARGS =
KIND = c address thread
SECONDS = 60
PYTHON = .venv/bin/python
INVOKER = scripts/as-invoker
ROOT = scripts/as-root

.DEFAULT_GOAL = help
.PHONY: help demo test bench lint sanitize sanitize-c sanitize-address sanitize-thread fuzz \
        valgrind wheel setup clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile
	@echo "ARGS='...' is passed on to what is run: make test ARGS='-k listen'"
	@echo "KIND=c|address|thread chooses one of sanitize: make sanitize KIND=thread"

demo: setup ## single handoffs, a node, a captured pod, with the evidence (ARGS=--pause)
	@$(ROOT) .venv/bin/pyztun demo $(ARGS)
	@echo
	@$(ROOT) .venv/bin/pyztun demo --zds $(ARGS)
	@echo
	@$(ROOT) .venv/bin/pyztun demo --capture $(ARGS)

test: setup ## all tests; without root or sudo those that can run in a user namespace
	@$(ROOT) $(PYTHON) -m pytest $(ARGS)

bench: setup ## measure against the C floor and print the table
	@scripts/setup-system --bench || echo "bench: what needs them is not measured" >&2
	@$(ROOT) $(PYTHON) -m bench $(ARGS)

lint: ## ruff, mypy strict, clang-format, and the C core with every warning an error
	@scripts/setup-system
	@$(INVOKER) scripts/build-venv lint
	$(INVOKER) $(PYTHON) -m ruff check .
	$(INVOKER) $(PYTHON) -m ruff format --check .
	$(INVOKER) $(PYTHON) -m mypy
	$(INVOKER) scripts/generate-protobuf --check
	$(INVOKER) .venv/bin/clang-format --dry-run -Werror csrc/*.[ch] tests/c/*.[ch]
	@$(INVOKER) $(MAKE) --no-print-directory -C tests/c analyze

sanitize: $(KIND:%=sanitize-%) ## C tests and all tests under ASan and UBSan, and under TSan

sanitize-c:
	@scripts/setup-system --sanitizers
	@$(INVOKER) $(MAKE) -s --no-print-directory -C tests/c build
	@$(ROOT) $(MAKE) --no-print-directory -C tests/c check
	@$(INVOKER) $(MAKE) -s --no-print-directory -C tests/c build SANITIZE=thread \
	    BUILD=../../build/ctests-tsan
	@$(ROOT) $(MAKE) --no-print-directory -C tests/c tsan

sanitize-address sanitize-thread: sanitize-%:
	@scripts/setup-system --sanitizers
	@$(INVOKER) scripts/build-sanitized $*
	@$(ROOT) scripts/run-sanitized $* $(ARGS)

fuzz: ## the receiving side under libFuzzer (SECONDS=60)
	@scripts/setup-system --fuzz
	@$(INVOKER) $(MAKE) --no-print-directory -C tests/fuzz build
	@$(ROOT) $(MAKE) --no-print-directory -C tests/fuzz run SECONDS=$(SECONDS)

valgrind: setup ## tests of the library under memcheck
	@scripts/setup-system --valgrind
	@$(ROOT) scripts/run-valgrind $(ARGS)

wheel: ## sdist, wheel from the sdist, and a check of it in a fresh venv
	@scripts/setup-system
	@$(INVOKER) scripts/build-venv build
	@$(INVOKER) scripts/build-wheel
	@$(INVOKER) scripts/check-wheel

setup: ## only the set-up: system packages, .venv, the project in it
	@scripts/setup-system
	@$(INVOKER) scripts/build-venv

clean: ## remove all that was built, .venv too
	rm -rf .venv build dist *.egg-info pyztun/_core.c pyztun/_core*.so pyztun/_relay.c \
	    pyztun/_relay*.so \
	    .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
