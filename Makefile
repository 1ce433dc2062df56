# make demo           the whole way on a small stand-in: minutes on two CPU cores, after the installation
# make test           formatting, lint, types and tests
# make test-server    the tests in the real server, on two CPU cores
# Each target installs what it needs. VENV=DIR and SERVER_VENV=DIR name environments that several clones can share.

VENV ?= .venv
# processes of `make test`, each with one thread and up to 2 GB
TEST_WORKERS ?= 2
# seconds that each fuzz test goes on; more find rarer cases: make test FUZZ_SECONDS=120
FUZZ_SECONDS ?= 2
export FUZZ_SECONDS
SERVER_VENV ?= $(VENV)-server
PYTHON ?= python3
# the server's own codec class, installed without its dependencies (5 GB of CUDA and vLLM)
SERVER_CLASS = vllm-omni==0.30.0
# EnCodec's own balancer, with which the tests compare ours; it imports flashy
BALANCER = audiocraft==1.3.0 flashy==0.0.2

# the evaluation's speaker network, without the voice detection that would have to be compiled (requirements-eval.txt)
SPEAKER_NETWORK = resemblyzer==0.1.4
# needs a C compiler; without one, the evaluation says that PESQ is missing and leaves it out
PESQ = pesq==0.0.4

REQUIREMENTS = requirements.txt requirements-eval.txt requirements-dev.txt
# The name holds a checksum: a shared environment is installed again when the requirements change, and only then.
STAMP := $(VENV)/.installed-$(shell cat $(REQUIREMENTS) Makefile | cksum | tr ' ' '-')
RUN = $(abspath $(VENV))/bin/python

SERVER_REQUIREMENTS = tests/serving/requirements.txt
# PyPI has no CPU build for Linux: set PIP_EXTRA_INDEX_URL to PyTorch's CPU index if pip does not find it.
SERVER_TORCH = torch==2.13.0+cpu
SERVER_CONTENT = $(shell { cat $(SERVER_REQUIREMENTS); echo $(SERVER_TORCH) $(SERVER_CLASS); } | cksum | tr ' ' '-')
SERVER_STAMP := $(SERVER_VENV)/.installed-$(SERVER_CONTENT)
SERVER_PIP = $(abspath $(SERVER_VENV))/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-server install install-server

install: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or 3.12: give one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(REQUIREMENTS))
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps $(SERVER_CLASS) $(BALANCER) $(SPEAKER_NETWORK)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PESQ) || echo "note: PESQ will be left out: no C compiler?"
	rm -f $(VENV)/.installed-*
	touch $@

install-server: $(SERVER_STAMP)

$(SERVER_STAMP): | $(STAMP)
	$(PYTHON) -m venv $(SERVER_VENV)
	$(SERVER_PIP) --no-deps $(SERVER_TORCH)
	$(SERVER_PIP) -r $(SERVER_REQUIREMENTS)
	$(SERVER_PIP) --no-deps $(SERVER_CLASS)
	rm -f $(SERVER_VENV)/.installed-*
	touch $@

demo: $(STAMP)
	$(RUN) -m examples.demo

test: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n $(TEST_WORKERS) --dist worksteal

test-server: $(SERVER_STAMP)
	SERVER_VENV=$(abspath $(SERVER_VENV)) $(RUN) -m pytest -m served -s tests/serving
