#!/usr/bin/env bash
# CNN/DailyMail with BART, from raw files to the table: the commands of docs/cnndm.md.
#
#   STORIES="cnn/stories dailymail/stories" URL_LISTS=url_lists GPT2=gpt2 BART=bart.large/model.pt \
#     scripts/cnndm.sh full               BART-large, as published
#   DELTASAM_DATA=folder scripts/cnndm.sh small
#                                         1,000 pairs and a BART of two layers, on a CPU (or: make
#                                         cnndm-small); it shows that the commands work, no result
#
# METHOD=sam    none, sam, delta_sam (the default) or per_instance
# GPUS=8        for full: 1, 2, 4 or 8 (default 1); SLURM=1 starts training with srun
# SEED=1
# CONTINUE=1    go on with an unfinished run; RESTART=1 moves it aside and starts over
#
# Needs: deltasam with fairseq, on PATH or in the folder DELTASAM_BIN. Writes: cnndm/ (or OUT).
set -euo pipefail

SIZE=${1:?cnndm.sh: say full or small}
METHOD=${METHOD:-delta_sam}
SEED=${SEED:-1}
PATH=${DELTASAM_BIN:+$DELTASAM_BIN:}$PATH

# Threads that wait sleep rather than spin: when another program takes one of two
# cores, spinning makes training five times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

say() { printf '\n== %s\n' "$*"; }
fail() { echo "cnndm.sh: $*" >&2; exit 2; }

command -v deltasam > /dev/null || fail "no deltasam on PATH; use 'make cnndm-small', or set" \
  "DELTASAM_BIN to the bin folder of the environment it is installed in"

case $SIZE in
  full)
    OUT=${OUT:-cnndm}
    RECIPE=cnndm
    GPUS=${GPUS:-1}
    read -r -a stories <<< "${STORIES:?cnndm.sh: the folders of .story files}"
    input=(--stories "${stories[@]}" --url-lists "${URL_LISTS:?cnndm.sh: the folder of all_*.txt}")
    vocabulary=(--gpt2 "${GPT2:?cnndm.sh: the folder of encoder.json, vocab.bpe and dict.txt}")
    words=("${vocabulary[@]}")
    model=("${BART:?cnndm.sh: model.pt of bart.large, or a Hugging Face folder}")
    machine=(--gpus "$GPUS")
    [ "${SLURM:-}" != 1 ] || machine+=(--slurm)
    ;;
  small)
    OUT=${OUT:-cnndm-small}
    RECIPE=cnndm-small
    GPUS=1
    data=${DELTASAM_DATA:?cnndm.sh: the folder of downloaded data, with cnndm/ and gpt2_bpe/}
    pairs=$data/cnndm/validation1000
    input=(--train-source "$pairs.source" --train-target "$pairs.target" --hold-out 50)
    words=(--encoder-json "$data/gpt2_bpe/encoder.json" --dict "$data/gpt2_bpe/dict.bart_roberta_50260.txt")
    vocabulary=("${words[@]}" --vocab-bpe "$data/gpt2_bpe/vocab.bpe")
    model=(--random small)
    machine=()
    ;;
  *) fail "unknown size $SIZE; known: full, small" ;;
esac
RUN=$OUT/runs/$METHOD-$SEED

has_checkpoint() { compgen -G "$RUN/checkpoints/*.pt" > /dev/null; }
is_finished() { grep -q '"finished": true' "$RUN/run.json" 2> /dev/null; }

how=
if [ "${RESTART:-}" = 1 ]; then
  how=--restart
elif is_finished; then
  how=reuse
elif has_checkpoint; then
  [ "${CONTINUE:-}" = 1 ] || fail "$RUN holds an unfinished run: set CONTINUE=1 to go on with it," \
    "or RESTART=1 to move it aside and start over"
  how=--resume
fi

say "1/5 data: clean, count, encode with GPT-2's BPE, binarize"
deltasam prepare cnndm "${input[@]}" "${vocabulary[@]}" --out "$OUT/data"

say "2/5 model: check it and write it for fairseq"
deltasam prepare bart "${model[@]}" "${words[@]}" --out "$OUT/bart"

say "3/5 training: fairseq-train --optimizer delta_sam --sam-method $METHOD"
train=(deltasam train "$RECIPE" --data "$OUT/data" --bart "$OUT/bart" --save-dir "$RUN"
  --method "$METHOD" --seed "$SEED" "${machine[@]}")
if [ "$how" = reuse ]; then
  echo "$RUN is finished; reusing it"
else
  "${train[@]}" $how
fi

say "4/5 decoding the test set, and ROUGE"
force=()
[ "$how" != --resume ] || force=(--force)
deltasam evaluate "$RUN" --processes "$GPUS" "${force[@]}"

say "5/5 results, beside the published ones"
deltasam table --published cnndm "$RUN"
