#!/bin/sh
# Measures the exact per-instance perturbation beside the other methods, by model and
# shape, and keeps the results under the name of the machine:
#
#     scripts/bench_per_instance.sh epyc-2core [further options of `deltasam bench step`]
#
# Needs the environment of `make environment` (its bin folder on PATH), 10 GB of memory for
# BERT-base, and a machine with little else to do: an hour with one thread, with progress shown.
# `deltasam bench show` makes the tables of docs/per_instance.md of the results, but for the one by
# length, which is a study: scripts/studies/length.py.
set -eu
hardware=${1:?name the machine, such as epyc-2core}
shift
folder="$(dirname "$0")/results"
keep() { # NAME COMMAND…
  file="$folder/$1_${hardware}_$(date +%Y%m).json"
  shift
  "$@" > "$file.part"
  mv "$file.part" "$file"
  echo "$file"
}
step() { # MODEL SENTENCES TOKENS ROUNDS …
  name="step_$1-$2x$3"
  model="--model $1 --sentences $2 --tokens $3 --repeats $4"
  shift 4
  keep "$name" deltasam bench step $model --slow-every 6 --threads 1 --clock processor --json "$@"
}
step minilm 16 64 7 "$@"
step minilm 16 128 7 "$@"
step minilm 32 64 7 "$@"
step minilm 32 128 5 --methods none,sam,delta_sam,per_instance "$@"
step bert_base 16 64 3 --methods none,sam,delta_sam,per_instance "$@"
step bert_base 16 128 3 --methods none,sam,per_instance "$@"
