#!/usr/bin/env bash
# Makes the environment of the peers, .peers/ at the root of the repository: learn2learn and easyfsl beside the torch of
# constraints.txt and what radshot itself needs. Both are kept out of radshot's own environment: learn2learn's source
# distribution needs a special build on Python 3.11, and easyfsl needs torchvision, which does not import beside a CPU
# build of torch unless its operators are declared first (benchmarks/peers_import.py). Needs a C compiler; some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3.11}"
[ -x .peers/bin/python ] || "$python" -m venv .peers
pip=(.peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt)
"${pip[@]}" torch
# What radshot's training, evaluation and image reading import, and what the peers need.
"${pip[@]}" numpy scipy pandas pillow scikit-learn scikit-image pydicom einops safetensors filelock rich jinja2 pyarrow \
    monai pytorch-metric-learning requests tqdm matplotlib faiss-cpu "cython>=3" "setuptools<81" wheel
CYTHON_FORCE_REGEN=1 .peers/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
    --use-pep517 --config-settings="--global-option=build_ext" learn2learn==0.2.0
.peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps easyfsl==1.5.0 torchvision timm
.peers/bin/python benchmarks/peers_import.py
