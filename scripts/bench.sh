#!/bin/sh
# Measures time and peak memory per update of none, sam, delta_sam and per_instance,
# and keeps the result under the name of the machine:
#
#     scripts/bench.sh epyc-2core [further options of `deltasam bench step`]
#
# Needs the environment of `make environment` (its bin folder on PATH) and a machine with
# little else to do. Ten minutes on two cores, with progress shown. Exits with 1 if a limit
# is not kept; the result is kept all the same.
set -eu
hardware=${1:?name the machine, such as epyc-2core}
shift
file="$(dirname "$0")/results/step_${hardware}_$(date +%Y%m).json"
status=0
deltasam bench step --json --check "$@" > "$file.part" || status=$?
if [ -s "$file.part" ]; then
  mv "$file.part" "$file"
  echo "$file"
else
  rm -f "$file.part"
fi
exit "$status"
