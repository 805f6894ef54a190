#!/bin/sh
# Measures what each precision leaves of the sentence weights of Eq. 5, and keeps the records
# that docs/precision.md shows under the name of the machine:
#
#     DELTASAM_DATA=dir ENCODER=folder scripts/probe_precision.sh epyc-2core
#
# ENCODER is a BERT with config.json, model.safetensors and vocab.txt; DELTASAM_DATA has
# glue/MRPC/train.tsv. Needs the environment of `make environment` (its bin folder on PATH)
# and 14 GB of memory. Half an hour on two busy cores, with progress shown.
set -eu
hardware=${1:?name the machine, such as epyc-2core}
data=${DELTASAM_DATA:?name the folder of downloaded data}
encoder=${ENCODER:?name the folder of a BERT}
results="$(dirname "$0")/results"
month=$(date +%Y%m)
mkdir -p "$results"

# Waiting threads sleep, and memory is kept instead of asked for in every pass.
export OMP_WAIT_POLICY=PASSIVE
export MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=4000000000

measure() {
  file="$results/probe_precision_$1_${hardware}_$month.json"
  shift
  deltasam analyse probe-precision --json "$@" > "$file.part"
  mv "$file.part" "$file"
  echo "$file"
}

measure "$(basename "$encoder")" --encoder "$encoder" --mrpc "$data/glue/MRPC/train.tsv" \
  --batches 12 --threads 1
measure "wide-$(basename "$encoder")" --encoder "$encoder" --mrpc "$data/glue/MRPC/train.tsv" \
  --rho 0.1,0.3 --batches 12 --threads 1 --no-dropout
measure roberta-large --random roberta-large --batches 2 --sentences 8 --no-dropout --threads 2
measure tiny --random tiny --batches 20 --threads 1
