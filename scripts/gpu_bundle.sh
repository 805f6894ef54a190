#!/bin/sh
# Packs everything that scripts/gpu.sh needs on a machine with a GPU and without a network:
#
#     DELTASAM_DATA=folder scripts/gpu_bundle.sh OUT
#
# Needs the environment of `make environment` (PYTHON=… for another), a package index and the
# GLUE tables in $DELTASAM_DATA/glue. Some of them may not be redistributed: keep OUT to yourself.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-$here/../.venv/bin/python}" "$here/gpu_bundle.py" "$@"
