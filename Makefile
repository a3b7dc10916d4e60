# `make quickstart` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
DALI ?= cuda130
BUILD ?= cuda110
VENV := .venv
BIN := $(VENV)/bin
SIMD ?= on
PILLOW_SIMD := 12.1.1.post0
SETUP := $(VENV)/.setup-$(DALI)
DALI_VENV := .venv-dali-$(BUILD)

.PHONY: help setup quickstart test test-slow test-dali test-lowest dist docs lint typecheck bench gpu gpu-report offline-pack simd clean

help:
	@echo "setup       lay .venv with the package, the dev tools, OpenCV and one DALI build (DALI=cuda110|cuda120|cuda130)"
	@echo "quickstart  the main job on drawn images, from a raw archive to a prediction"
	@echo "test        the test suite;   test-slow  what takes minutes by nature"
	@echo "test-dali   the tests of DALI under another build (BUILD=cuda110|cuda120|cuda130), laid in a .venv-dali-BUILD over .venv"
	@echo "test-lowest the security tests with the lowest versions that pyproject.toml allows, laid in .venv-lowest over .venv"
	@echo "dist        builds the sdist and the wheel, and runs the quickstart from the wheel in a fresh environment"
	@echo "docs        makes docs/cli.md and docs/python.md anew, and a site of all pages in build/site"
	@echo "lint        ruff;             typecheck  pyright;             bench  the benchmarks"
	@echo "gpu         checks and measures on a GPU: PART=1|2|3|all, OUT=DIR, PACK=offline to install a pack first, PYTHON=python3"
	@echo "gpu-report  the dated note in benchmarks/ of what \`make gpu\` left in OUT"
	@echo "offline-pack  lays in offline/ what \`make gpu\` needs without network: PART_MB=50 PYTHON=3.12"
	@echo "simd        puts pillow-simd in Pillow's place (needs AVX2, a C compiler, headers);   SIMD=off puts Pillow back"

setup: $(SETUP)

# Only one DALI build fits at a time, so the others leave first.
$(SETUP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.setup-*
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip uninstall --quiet --yes $(filter-out nvidia-dali-$(DALI),nvidia-dali-cuda110 nvidia-dali-cuda120 nvidia-dali-cuda130) 2>/dev/null
	$(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt --editable '.[dev,opencv,dali-$(DALI)]'
	touch $@

quickstart: setup
	$(BIN)/python -m in21k.cli.quickstart

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu"

test-dali: $(DALI_VENV)/.setup
	$(DALI_VENV)/bin/python -c "import nvidia.dali as dali; print('DALI', dali.__version__, 'of $(BUILD):', dali.__file__)"
	$(DALI_VENV)/bin/python -m pytest -m "not slow" -k dali

# Only the other build is laid there; all else is found in .venv, which stays as it is.
LAYER := import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')
$(DALI_VENV)/.setup: $(SETUP) constraints.txt
	rm -rf $(DALI_VENV)
	$(BIN)/python -m venv $(DALI_VENV)
	$(BIN)/python -c "$(LAYER)" > $$($(DALI_VENV)/bin/python -c "import site; print(site.getsitepackages()[0])")/in21k-layer.pth
	$(DALI_VENV)/bin/python -m pip install --quiet --constraint constraints.txt nvidia-dali-$(BUILD)
	touch $@

test-lowest: .venv-lowest/.setup
	.venv-lowest/bin/python -m pytest -m "security and not slow and not gpu"

# torch and torchvision are those of .venv: their lowest versions are gigabytes. The tests make S3 buckets with boto3,
# which has to go with the botocore of s3fs.
define LOWEST
import re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["webdataset"], *extras["remote"]]:
    name, version = re.match(r"([\w-]+)\S*>=([\w.]+)", requirement).groups()
    if name not in ("torch", "torchvision"):
        print(f"{name}=={version}")
print("aiobotocore[boto3]<3")
endef
export LOWEST
.venv-lowest/.setup: $(SETUP) pyproject.toml
	rm -rf .venv-lowest
	$(BIN)/python -m venv .venv-lowest
	$(BIN)/python -c "$(LAYER)" > $$(.venv-lowest/bin/python -c "import site; print(site.getsitepackages()[0])")/in21k-layer.pth
	$(BIN)/python -c "$$LOWEST" > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --requirement .venv-lowest/lowest.txt
	touch $@

# The wheel is built from the sdist, so that what the sdist lacks shows.
dist: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	rm -rf dist/try && $(PYTHON) -m venv dist/try/.venv
	dist/try/.venv/bin/python -m pip install --quiet --constraint constraints.txt "$$(echo dist/in21k-*.whl)[opencv,dali-$(DALI)]"
	cd dist/try && .venv/bin/python -m in21k.cli.quickstart && rm -rf .venv

docs: setup
	CUDA_VISIBLE_DEVICES= $(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html --conf-dir docs . build/site
	@echo "build/site/docs/index.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup
	mkdir -p .typecheck && rm -rf .typecheck/in21k && ln -sfn .. .typecheck/in21k
	$(BIN)/pyright --project pyproject.toml

bench: setup
	$(BIN)/python -m benchmarks.image_rate --psnr
	$(BIN)/python -m benchmarks.preprocess
	$(BIN)/python -m benchmarks.preprocess --cores
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.open_large
	$(BIN)/python -m benchmarks.pack
	$(BIN)/python -m benchmarks.loaders
	$(BIN)/python -m benchmarks.tiny_hierarchy
	$(BIN)/python -m benchmarks.semantic_loss
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.distill
	$(BIN)/python -m benchmarks.transfer

# Without .venv it runs with PYTHON, which has torch and timm; a pack brings the rest.
PART ?= all
OUT ?= build/gpu
PACK ?=
gpu:
	$$(test -x $(BIN)/python && test -z "$(PACK)" && echo $(BIN)/python || echo $(PYTHON)) -m benchmarks.gpu_session --part $(PART) --out $(OUT) $(if $(PACK),--pack $(PACK))

gpu-report:
	$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) -m benchmarks.gpu_session_report $(OUT)

# Here PYTHON is the version on the target machine.
PART_MB ?= 50
offline-pack: PACKED := $(if $(filter python%,$(PYTHON)),3.12,$(PYTHON))
offline-pack:
	$(BIN)/python -m benchmarks.offline_pack offline --part-mb $(PART_MB) --python $(PACKED)

# pillow-simd brings the same files as Pillow, and no wheels. One is built first, so that a failure leaves Pillow alone; and
# not from the cache, as headers that came since would be missed.
HAS_HEADER = printf '\#include <stdio.h>\n\#include <$(1)>\n' | cc -E - >/dev/null 2>&1
simd: setup
ifeq ($(SIMD),off)
	$(BIN)/python -m pip uninstall --quiet --yes pillow-simd
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --force-reinstall --no-deps pillow
else
	@grep -qw avx2 /proc/cpuinfo || { echo "simd: this processor has no AVX2"; exit 1; }
	@command -v cc >/dev/null || { echo "simd: no C compiler (cc); Debian: apt install gcc"; exit 1; }
	@$(call HAS_HEADER,jpeglib.h) && $(call HAS_HEADER,zlib.h) || \
	{ echo "simd: the headers of libjpeg and zlib are missing; Debian: apt install libjpeg62-turbo-dev zlib1g-dev"; exit 1; }
	@$(call HAS_HEADER,webp/decode.h) || \
	echo "simd: without libwebp's headers (Debian: apt install libwebp-dev) WebP images will be rejected"
	CC="cc -mavx2" $(BIN)/python -m pip wheel --quiet --no-cache-dir --no-deps --no-binary pillow-simd --wheel-dir build/simd pillow-simd==$(PILLOW_SIMD)
	$(BIN)/python -m pip uninstall --quiet --yes pillow pillow-simd
	$(BIN)/python -m pip install --quiet --no-deps --no-index --find-links build/simd pillow-simd==$(PILLOW_SIMD)
endif

clean:
	rm -rf $(VENV) .venv-dali-* .venv-lowest .typecheck quickstart *.egg-info build dist
