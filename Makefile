# Every target does its own set-up: a virtual environment with pinned versions, and the compiled libraries in place.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: build test demo bench gpu lint clean

$(VENV)/.done: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

build: $(VENV)/.done
	$(PY) setup.py --quiet build_ext --inplace

# Two halves side by side, a core each.
APART := tests/test_golden.py tests/test_triton.py

test: export OMP_NUM_THREADS = 1
test: build
	@$(PY) -m pytest $(APART) & half=$$!; \
	$(PY) -m pytest tests $(APART:%=--ignore %); other=$$?; \
	wait $$half && exit $$other

demo: build
	$(PY) -m i2ifast.demo --out demo --plain-generator benchmarks/plain_spade.py

bench: build
	$(PY) -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/last.json
	$(PY) benchmarks/report.py benchmarks/last.json

# A GPU machine may have nothing installable: use its own Python where that has torch.
gpu:
	@if $(PYTHON) -c "import torch" 2>/dev/null; then $(PYTHON) -m i2ifast.gpucheck --out gpu-report; \
	else $(MAKE) --no-print-directory build && $(PY) -m i2ifast.gpucheck --out gpu-report; fi

lint: $(VENV)/.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h kernels/*.cpp kernels/*.h

clean:
	rm -rf build i2ifast/*.so
