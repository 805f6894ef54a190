#!/bin/sh
# Checks the device, measures every method and fills table cells, in minutes and without a network:
#
#     scripts/gpu.sh --minutes 9 --out OUT [--bundle DIR]     on a machine with a GPU
#     scripts/gpu.sh --rehearse --out OUT                     all of it, tiny, on a CPU
#
# DIR is what scripts/gpu_bundle.sh made; this script lies in it as well. PYTHON names a Python
# that has torch. With DELTASAM_INSTALLED=1 that Python has everything, and nothing is installed.
set -eu
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
