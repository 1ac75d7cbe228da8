# make demo   sets up .venv and runs the main job on people that the program draws itself
# make test   sets up .venv and runs every test
# make lint   ruff and mypy
# make docs   the site of README and docs/ in build/site; a dead link fails
# make rknn-env  sets up .venv-rknn: Rockchip's compiler, for `export --format rknn` (0.6 GB)
# make bench  measures this program against named peers

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready

.PHONY: demo test lint docs bench rknn-env clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(VENV)/bin/python run_reid.py

test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(READY)
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	rm -rf build/docs
	mkdir -p build/docs/docs build/docs/weights
	cp *.md LICENSE build/docs
	cp docs/*.md docs/*.png build/docs/docs
	cp weights/*.md build/docs/weights
	$(VENV)/bin/python -m mkdocs build --strict --config-file docs/mkdocs.yml

bench: $(READY)
	$(VENV)/bin/python benchmarks/evaluate.py

# Its pins exclude ours, so it is driven as a subprocess. Without its dependencies: what it asks for beyond this list is
# torch of its own (gigabytes), of which a conversion from ONNX uses little; it finds ours, after its own packages.
rknn-env: $(READY)
	$(PYTHON) -m venv --clear .venv-rknn  # anew: pip must not see our packages through the line below
	.venv-rknn/bin/python -m pip install --quiet --no-deps rknn-toolkit2==2.5.0 protobuf==4.25.4 psutil ruamel.yaml \
	  'scipy<1.15' tqdm opencv-python-headless==4.10.0.84 fast-histogram numpy==1.26.4 onnx==1.18.0 onnxruntime==1.20.1
	$(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$(.venv-rknn/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
	.venv-rknn/bin/python -c 'from rknn.api import RKNN'

$(READY): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-rknn build *.egg-info
