# env   a virtual environment with what this machine can use
# demo  the main job, from nothing, on embedded defaults (S3=1: with a real S3 server)
# test  every test    check  ruff, mypy, layers    bench  the measured claims
# every-write  a kill before every write of a device (make test: forty-odd of them)
# fuzz  the door under broken requests, for FUZZ_S=60 seconds
# powercut  the power cut after every write of a device, in a User-Mode Linux guest: ten minutes
VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMP  := $(VENV)/.ready
APART  := $(addprefix tests/faults/test_,kill.py seats.py)
ALONE  := $(addprefix tests/system/test_,swaps.py event_loop.py)
FIRST  := tests/core tests/attacks tests/faults tests/system tests/runner
SHARED := $(FIRST) $(filter-out $(FIRST) tests/__pycache__,$(patsubst %/,%,$(wildcard tests/*/))) $(wildcard tests/test_*.py)
export ORT_DISABLE_TELEMETRY := 1

.PHONY: env demo test check bench clean every-write powercut fuzz

env: $(STAMP)

$(STAMP): pyproject.toml tools/env.sh
	tools/env.sh $(VENV)
	touch $@

demo: env
	$(PYTHON) -m tools.demo $(if $(S3),--s3)

# Most files share the machine, the longest first, two for each of two cores: half of a test is waiting for a device.
# Those that wait for restarts have it together. What measures, or swaps without a pause, has it alone: beside others
# it would last longer, and take more of them.
test: env
	tools/apt.sh mosquitto 2.0
	-tools/apt.sh strace 5.0
	-tools/perf_analyzer.sh
ifdef TESTS
	$(PYTHON) -m pytest $(TESTS)
else
	PATIENCE=$(or $(PATIENCE),3) $(PYTHON) -m tools.suite -n 4 --dist loadfile --no-loadscope-reorder --timeout=900 $(SHARED) $(addprefix --ignore=,$(APART) $(ALONE)) -- -n 3 --dist loadgroup $(APART) -- $(ALONE)
endif

every-write: env
	tools/apt.sh strace 5.0
	EVERY_WRITE=all $(PYTHON) -m pytest -s tests/faults/test_every_write.py

# FUZZ_S seconds, 60 where it is not said.
fuzz: env
	-$(PYTHON) -c 'import atheris' || $(PYTHON) -m pip install -q 'atheris>=3.0'
	$(PYTHON) -m tests.runner.fuzz

powercut: env
	$(PYTHON) -m tests.system.powercut

check: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest -q tests/test_layers.py

bench: env
	tools/apt.sh mosquitto 2.0
	for program in benchmarks/[a-z]*.py; do $(PYTHON) $$program || exit 1; done

clean:
	rm -rf $(VENV) .cache demo-out
