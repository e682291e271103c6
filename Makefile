# The two commands: `make demo` and `make test`. Both set everything up from nothing and reuse it the second time.
PYTHON ?= python3
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH

STATE := .make
DEMO := $(STATE)/demo/bin
TEST := $(STATE)/test/bin
OUT := out
SOURCES := pyproject.toml CMakeLists.txt README.md LICENSE $(shell find csrc kernels pysora -type f \
	-not -path '*/__pycache__/*' -not -name '*.so' 2>/dev/null)

.PHONY: help demo test check bench mutants wheel clean

help:
	@echo "make demo   set up, build, install and make two videos in $(OUT)/"
	@echo "make test   set up, build the wheel, install it in a clean environment and test it there"
	@echo "make check  ruff, clang-format and mypy (part of make test)"
	@echo "make mutants put a mistake into each GPU kernel, one at a time, and see that a test fails"
	@echo "make bench  measure ops and models beside torch and diffusers"
	@echo "make wheel  build dist/*.whl"
	@echo "make clean  remove what these commands made"

wheel: $(STATE)/wheel

demo: $(STATE)/demo/installed
	@mkdir -p $(OUT)
	@$(DEMO)/pysora generate "a cat sits on a windowsill watching the sunset" --seed 1 \
		-o $(OUT)/cat.mp4 -o $(OUT)/cat.gif -o $(OUT)/cat.png
	@$(DEMO)/pysora generate "a dog runs in the snow" --seed 1 \
		-o $(OUT)/dog.mp4 -o $(OUT)/dog.gif -o $(OUT)/dog.png
	@echo
	@echo "MP4            $(CURDIR)/$(OUT)/cat.mp4  $(CURDIR)/$(OUT)/dog.mp4"
	@echo "GIF            $(CURDIR)/$(OUT)/cat.gif  $(CURDIR)/$(OUT)/dog.gif"
	@echo "contact sheet  $(CURDIR)/$(OUT)/cat.png  $(CURDIR)/$(OUT)/dog.png"
	@echo 'your turn:     $(DEMO)/pysora generate "a red ball bounces on grass" -o $(OUT)/ball.mp4'

# The script, not `python -m`, and importlib: the tests must see the installed wheel, never the sources beside them.
test: check
	$(TEST)/pytest --import-mode=importlib tests
	$(if $(wildcard benchmarks),$(TEST)/pytest --import-mode=importlib --benchmark-disable benchmarks)

check: $(STATE)/test/installed
	$(TEST)/ruff check .
	$(TEST)/ruff format --check .
	$(TEST)/clang-format --dry-run --Werror $$(find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.h')
	$(TEST)/mypy -p pysora

mutants: $(STATE)/test/installed
	cd tests && ../$(TEST)/python -m ptx.mutants

bench: $(STATE)/test/installed
	$(TEST)/pysora bench

$(STATE)/demo/installed: $(STATE)/wheel $(STATE)/demo/torch
	$(call install,$(STATE)/demo,)
	@touch $@

$(STATE)/test/installed: $(STATE)/wheel $(STATE)/test/torch
	$(call install,$(STATE)/test,[test])
	@touch $@

# The first time with its dependencies, later the wheel alone; the constraint keeps the torch that is there.
define install
@$(1)/bin/pip freeze | grep -i '^torch==' > $(1)/constraints.txt
$(1)/bin/pip install -q -c $(1)/constraints.txt "$$(echo dist/pysora-*.whl)$(2)"
$(1)/bin/pip install -q --no-deps --force-reinstall dist/pysora-*.whl
endef

$(STATE)/wheel: $(SOURCES) $(STATE)/build/bin/python
	@rm -rf dist
	$(STATE)/build/bin/pip wheel -q --no-deps -w dist .
	@touch $@

# A CPU build of torch where there is no NVIDIA GPU: PyPI's Linux build brings gigabytes of CUDA libraries.
$(STATE)/%/torch: $(STATE)/%/bin/python
	@if [ "$$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then \
	  $(STATE)/$*/bin/pip install -q torch==2.13.0 || $(STATE)/$*/bin/pip install -q 'torch>=2.10'; \
	else \
	  $(STATE)/$*/bin/pip install -q torch==2.13.0+cpu 2>/dev/null || \
	  $(STATE)/$*/bin/pip install -q torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu 2>/dev/null || \
	  $(STATE)/$*/bin/pip install -q 'torch>=2.10'; \
	fi
	@touch $@

$(STATE)/%/bin/python:
	$(PYTHON) -m venv $(STATE)/$*

.PRECIOUS: $(STATE)/%/torch $(STATE)/%/bin/python

clean:
	rm -rf $(STATE) build dist
