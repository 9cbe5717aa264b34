# Everything that people and CI run. `make help` lists it.

CARGO   ?= cargo
PREFIX  ?= /usr/local
DESTDIR ?=
bindir  := $(DESTDIR)$(PREFIX)/bin
share   := $(DESTDIR)$(PREFIX)/share

PROGRAMS := seawall seawall-archive seawall-restore seawall-fetch seawall-drill
PRODUCT  := $(CARGO) build --release --bins $(addprefix --package ,seawall seawall-archive seawall-restore seawall-drill)
TARGET   := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: demo test test-long check bench install help

demo: ## Back up, archive, lose everything, restore to a moment, prove it (under three minutes)
	scripts/setup demo
	$(CARGO) build --workspace --bins --release
	$(TARGET)/release/demo

test: ## Everything that must hold before a merge: check, then the end-to-end tests
	scripts/setup test
	scripts/check
	$(CARGO) build --workspace --bins
	scripts/end-to-end

test-long: ## The same with the long tests, and PostgreSQL 14
	scripts/setup test-long
	scripts/check
	$(CARGO) build --workspace --bins
	scripts/end-to-end --long

check: ## Format, lints, documentation, dependencies, unit tests
	scripts/check

bench: ## Archiving, fetching, backups and restores beside pgBackRest, zstd and cp; memory (about an hour)
	scripts/setup bench
	$(PRODUCT)
	bench/run

install: ## Install the five programs, their man pages and completions below $(PREFIX)
	$(PRODUCT)
	install -d $(bindir)
	for program in $(PROGRAMS); do install -m 0755 $(TARGET)/release/$$program $(bindir)/ || exit 1; done
	install -d $(share)/man/man1 $(share)/bash-completion/completions $(share)/zsh/site-functions $(share)/fish/vendor_completions.d
	install -m 0644 docs/man/*.1 $(share)/man/man1/
	for file in docs/completions/*.bash; do install -m 0644 $$file $(share)/bash-completion/completions/$$(basename $$file .bash) || exit 1; done
	install -m 0644 docs/completions/_* $(share)/zsh/site-functions/
	install -m 0644 docs/completions/*.fish $(share)/fish/vendor_completions.d/

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
