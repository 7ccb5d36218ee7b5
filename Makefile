# Every chore has a target here; each makes what it needs. Needs Python 3.11+ and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/dev.txt
SANITIZED := build/sanitized

.PHONY: help install build test triton-test gpu-gate bench bench-quick bench-full lint format sanitize fuzz results docs-check gpu-check clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  f"mmkern needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}; \
	set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) setuptools ninja numpy torch
	MMKERN_NO_EXT=1 $(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) --no-build-isolation \
	  --editable '.[dev]'
	@touch $@

install: $(VENV)/installed ## make .venv with the development dependencies

build: $(VENV)/installed ## build the C++ extension (again, where a source changed)
	@$(BIN)/python setup.py --quiet build_ext --inplace

test: build ## run the tests
	$(BIN)/python -m pytest tests -q --durations=10 --ignore tests/test_ascendc.py \
	  --ignore-glob 'tests/test_twin*'

# A process of its own: Triton reads the variable once, when it is imported.
triton-test: build ## the Triton kernels in Triton's interpreter, without a GPU
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/test_triton*.py -q --durations=5

# The oldest torch and Triton that serve, in an environment of their own. The extension is not
# built there. PyPI's torch brings CUDA's libraries: 5 GB.
OLDEST := .venv-oldest
$(OLDEST)/installed: pyproject.toml requirements/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c requirements/oldest.txt \
	  setuptools torch triton numpy pytest
	MMKERN_NO_EXT=1 $(OLDEST)/bin/pip install --quiet --disable-pip-version-check \
	  -c requirements/oldest.txt --no-build-isolation --editable .
	@touch $@

.PHONY: triton-oldest
triton-oldest: $(OLDEST)/installed ## the Triton kernels with torch 2.11 and Triton 3.6, and the GPU run rehearsed
	TRITON_INTERPRET=1 $(OLDEST)/bin/python -m pytest $(wildcard tests/test_triton*.py) -q --durations=5
	$(OLDEST)/bin/python benchmarks/gpu_gate.py --no-table --target sm_90
	$(OLDEST)/bin/python benchmarks/gpu_check.py --rehearse --small
	$(OLDEST)/bin/python benchmarks/gpu_check.py --rehearse --part times --match vit_l16 --output out/oldest.json

# Each is one core's work for the most part, so twin-check runs two at a time, each with half the
# compilers, and a part that fails stops no other. A process of its own for the ops, because their
# first test compiles the kernels and the twin.
.PHONY: twin-check twin-tests twin-faults twin-ops twin-examples
twin-check: $(VENV)/installed ## all that runs the AscendC kernels on the CPU, on a twin of their API
	@MAX_JOBS=$${MAX_JOBS:-$$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 ))} \
	  $(MAKE) --no-print-directory -k -j2 twin-faults twin-ops twin-tests

twin-ops: $(VENV)/installed ## the ops on the AscendC kernels, by the accuracy rule
	$(BIN)/python -m pytest tests/test_ascendc.py -q --durations=5

twin-faults: $(VENV)/installed ## faults planted in the AscendC kernels, each to be caught
	$(BIN)/python tests/twin_mutations.py

twin-tests: $(VENV)/installed ## the AscendC twin itself: instructions, rules
	$(BIN)/python -m pytest -q $(wildcard tests/test_twin*.py)

twin-examples: $(VENV)/installed ## public AscendC examples on the twin: make twin-examples DEVKIT=<checkout of asc-devkit>
	$(BIN)/python benchmarks/twin_examples.py $(DEVKIT)

gpu-gate: $(VENV)/installed ## compile every Triton kernel for four GPUs, without one, and compare
	$(BIN)/python benchmarks/gpu_launches.py --check
	$(BIN)/python benchmarks/gpu_gate.py --check

.PHONY: ascendc-headers
ascendc-headers: $(VENV)/installed ## type-check the AscendC kernels: make ascendc-headers DEVKIT=<checkout of asc-devkit>
	$(BIN)/python benchmarks/ascendc_headers.py $(or $(DEVKIT),$(error set DEVKIT to a checkout of asc-devkit))

# Ascend's compiler is what remains: kernels_npu.cpp and the linking.
NPU_HEADERS := build/torch_npu
.PHONY: ascendc-host npu-check
ascendc-host: $(VENV)/installed ## type-check the NPU host code against torch_npu's headers, which pip fetches
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(NPU_HEADERS) torch_npu
	cd $(NPU_HEADERS) && for w in torch_npu-*.whl; do $(PYTHON) -m zipfile -e $$w .; done
	for f in attention attention_backward device device_npu linear_backward mlp modulate patch_embed; do \
	  $${CXX:-g++} -std=c++20 -fsyntax-only -Icsrc $$($(BIN)/python -c 'from torch.utils.cpp_extension \
	    import include_paths as p; print(*(f"-isystem {d}" for d in p()))') \
	    -isystem $(NPU_HEADERS)/torch_npu/include -isystem $(NPU_HEADERS)/torch_npu/include/third_party/acl/inc \
	    csrc/ascendc/$$f.cpp || exit 1; done

npu-check: $(VENV)/installed ## on an Ascend NPU: correctness, times against torch_npu's fused ops
	$(BIN)/python benchmarks/npu_check.py

# Two Tritons share one import name, so Ascend's has an environment of its own.
ASCEND := .venv-ascend
$(ASCEND)/installed: pyproject.toml requirements/ascend.txt
	$(PYTHON) -m venv $(ASCEND)
	$(ASCEND)/bin/pip install --quiet --disable-pip-version-check -c requirements/ascend.txt \
	  setuptools torch numpy pytest pytest-xdist triton-ascend ascendnpu-ir pybind11
	MMKERN_NO_EXT=1 $(ASCEND)/bin/pip install --quiet --disable-pip-version-check \
	  -c requirements/ascend.txt --no-build-isolation --editable .
	@touch $@

.PHONY: ascend-check ascend-check-full
# Running needs Debian's mlir-19-tools, libmlir-19 and clang-19; the tests say so where they lack.
ascend-check: $(ASCEND)/installed ## compile the Triton kernels for Ascend 910B, without one, and run the lowered code
	$(ASCEND)/bin/python benchmarks/ascend_gate.py --check --sample
	$(ASCEND)/bin/python -m pytest tests/test_ascend.py -q -n 2

ascend-check-full: $(ASCEND)/installed ## the same, every dtype and case
	$(ASCEND)/bin/python benchmarks/ascend_gate.py --check
	MMKERN_ASCEND_FULL=1 $(ASCEND)/bin/python -m pytest tests/test_ascend.py -q -n 2

fuzz: build ## search for failing shapes for longer than the tests do
	MMKERN_FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest tests/test_fuzz.py -q

bench: build ## the main job: ops and models against eager PyTorch and torch.compile, on photographs
	$(BIN)/mmkern bench --output out/bench

bench-quick: build ## the same, short
	$(BIN)/mmkern bench --quick --output out/bench-quick

bench-full: build ## the same, every workload in every dtype, in a quarter to half an hour
	$(BIN)/mmkern bench --full --output out/bench-full

# Noise voids the job and exits 0; the margin is wide because two builds differ by a few percent
# through where their code lies.
.PHONY: speed-gate instructions gate-power
speed-gate: build ## fail where this tree is slower than the last commit of main; a few cases
	$(BIN)/mmkern compare previous . --quick --margin 10 --seconds 150 --output out/compare.json

instructions: build ## fail where a CPU kernel executes more instructions than its committed count
	$(BIN)/python benchmarks/instructions.py --check

gate-power: build ## measure again how often the gate is right, in about half an hour
	$(BIN)/python benchmarks/gate_power.py
	$(TABLES) $(RESULTS)/gate_power.json docs/benchmarks.md

RESULTS := benchmarks/results
TABLES := $(BIN)/python -m mmkern.bench.readme
results: bench-full $(ASCEND)/installed ## measure again, and write the committed results and the tables made from them
	$(BIN)/python -m pytest tests/test_accuracy.py -q --junit-xml out/cpu.xml
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/test_triton.py -q --junit-xml out/triton.xml
	MMKERN_ASCEND_FULL=1 $(ASCEND)/bin/python -m pytest tests/test_ascend.py -q -n 2 --junit-xml out/ascend.xml
	$(BIN)/python -m pytest tests/test_ascendc.py -q --junit-xml out/ascendc.xml
	cp out/bench-full/results.json $(RESULTS)/cpu.json
	$(BIN)/python -m mmkern.bench.matrix out/cpu.xml out/triton.xml out/ascend.xml out/ascendc.xml \
	  $(RESULTS)/cpu.json --gate $(RESULTS)/gpu_gate.json --ascend-gate $(RESULTS)/ascend_gate.json \
	  $(addprefix --gpu ,$(wildcard $(RESULTS)/gpu.json)) -o $(RESULTS)/matrix.json
	$(BIN)/python benchmarks/model_shares.py
	$(TABLES) $(RESULTS)/cpu.json README.md --short
	$(TABLES) $(RESULTS)/cpu.json docs/benchmarks.md
	$(BIN)/python benchmarks/model_shares.py --table docs/benchmarks.md
	$(TABLES) $(RESULTS)/matrix.json README.md
	$(foreach run,$(wildcard $(RESULTS)/gpu.json),$(TABLES) $(run) docs/triton.md)

.PHONY: cpu-limits
cpu-limits: build ## time the CPU kernels beside their aims, and write the result and README's table
	$(BIN)/python benchmarks/cpu_limits.py
	$(BIN)/python benchmarks/cpu_limits.py --table README.md

docs-check: build ## fail where a table is not what its committed results make
	$(TABLES) $(RESULTS)/cpu.json README.md --short --check
	$(TABLES) $(RESULTS)/cpu.json docs/benchmarks.md --check
	$(TABLES) $(RESULTS)/matrix.json README.md --check
	$(foreach run,$(wildcard $(RESULTS)/gpu.json),$(TABLES) $(run) docs/triton.md --check)
	$(BIN)/python benchmarks/ascendc_estimate.py --check
	$(BIN)/python benchmarks/cpu_limits.py --table README.md --check
	$(BIN)/python benchmarks/cpu_limits.py --table docs/benchmarks.md --check \
	  --result $(RESULTS)/cpu_limits_avx2.json
	$(BIN)/python benchmarks/cpu_limits.py --table docs/benchmarks.md --check \
	  --result $(RESULTS)/cpu_limits_zen4.json
	$(BIN)/python benchmarks/model_shares.py --table docs/benchmarks.md --check
	$(TABLES) $(RESULTS)/gate_power.json docs/benchmarks.md --check
	$(TABLES) $(RESULTS)/gate_power_busy.json docs/benchmarks.md --check

lint: $(VENV)/installed ## formatters and linters, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h')

format: $(VENV)/installed ## formatters and linters, changing files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h')

# The sanitized extension lives in a build folder of its own and is found before the editable one.
sanitize: $(VENV)/installed ## kernel tests on a build with the address and undefined sanitizers
	MMKERN_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-lib $(SANITIZED)
	PYTHONPATH=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 \
	  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
	  MMKERN_CACHE_MB=0 $(BIN)/pytest tests/test_accuracy.py tests/test_edges.py tests/test_determinism.py -q -x \
	  -k 'not fallback and not ten_runs and not neighbours' -p no:cacheprovider

.PHONY: arm-check
arm-check: $(VENV)/installed ## on Debian with a cross-compiler: the CPU kernels on 64-bit ARM, emulated
	sh tests/arm_check.sh

gpu-check: build ## on a CUDA machine: correctness, compute-sanitizer, times against peers
	$(BIN)/python benchmarks/gpu_check.py

clean: ## remove everything that was built, .venv included
	rm -rf $(VENV) $(ASCEND) $(OLDEST) build out *.egg-info mmkern/*.so
