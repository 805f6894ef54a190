#!/usr/bin/env bash
# Train a summarizer with fairseq and the delta_sam optimizer, on the docstrings of
# the Python packages installed here, and score it with ROUGE.
#
#   scripts/demo.sh                       delta-SAM (or: make demo)
#   scripts/demo.sh --method sam          another method: none, sam, delta_sam, per_instance
#   CONTINUE=1 scripts/demo.sh            go on with an unfinished run
#   RESTART=1 scripts/demo.sh             move the earlier run aside and start over
#
# Needs: deltasam with fairseq and matplotlib, on PATH or in the folder DELTASAM_BIN, and the
# checkout: corpus and recipe are those of examples/docstrings.
# Takes: about eight minutes on two idle cores. Writes: demo/ (or the folder DEMO).
set -euo pipefail

METHOD=${METHOD:-delta_sam}
while [ $# -gt 0 ]; do
  case $1 in
    --method) METHOD=${2:?--method needs a value}; shift 2 ;;
    *) echo "demo.sh: unknown argument $1; known: --method NAME" >&2; exit 2 ;;
  esac
done

PATH=${DELTASAM_BIN:+$DELTASAM_BIN:}$PATH
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEMO=${DEMO:-demo}
TEXT=$DEMO/text
DATA=$DEMO/data
RUN=$DEMO/runs/$METHOD

# Threads that wait sleep rather than spin: when another program takes one of two
# cores, spinning makes training five times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

say() { printf '\n== %s\n' "$*"; }
has_checkpoint() { compgen -G "$RUN/checkpoints/*.pt" > /dev/null; }
is_finished() { grep -q '"finished": true' "$RUN/run.json" 2> /dev/null; }

command -v deltasam > /dev/null || {
  echo "demo.sh: no deltasam on PATH; use 'make demo', or set DELTASAM_BIN to the bin folder" \
    "of the environment it is installed in" >&2
  exit 2
}

how=new
if [ "${RESTART:-}" = 1 ]; then
  how=restart
elif is_finished; then
  how=reuse
elif has_checkpoint; then
  how=resume
  [ "${CONTINUE:-}" = 1 ] || {
    echo "demo.sh: $RUN holds an unfinished run: set CONTINUE=1 to go on with it, or RESTART=1" \
      "to move it aside and start over" >&2
    exit 2
  }
fi

say "1/5 text: docstrings of the installed packages, sentencepiece, fairseq-preprocess (1 min)"
PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} python -m examples.docstrings.prepare --out "$TEXT"
files=()
for split in train valid test; do
  files+=("--$split-source" "$TEXT/$split.source" "--$split-target" "$TEXT/$split.target")
done
deltasam prepare text "${files[@]}" --out "$DATA" \
  --vocab-size 3000 --max-source-tokens 48 --max-target-tokens 32

say "2/5 training: fairseq-train --optimizer delta_sam --sam-method $METHOD (5 min)"
train=(deltasam train docstrings --recipe-file "$ROOT/examples/docstrings/recipe.py"
  --data "$DATA" --save-dir "$RUN" --method "$METHOD")
case $how in
  new) "${train[@]}" ;;
  restart | resume) "${train[@]}" "--$how" ;;
  reuse) echo "$RUN is finished; reusing it" ;;
esac

say "3/5 decoding and scoring the test set (half a minute)"
if [ $how = resume ]; then
  deltasam evaluate "$RUN" --force
else
  deltasam evaluate "$RUN"
fi

say "4/5 learning curve"
deltasam analyse curve "$RUN" --out "$DEMO/curve-$METHOD.png"

say "5/5 results; the same with another method: make demo METHOD=sam (or none)"
runs=("$DEMO/runs/none" "$DEMO/runs/sam" "$DEMO/runs/delta_sam")
[ "$METHOD" != per_instance ] || runs+=("$RUN")
deltasam table "${runs[@]}"
[ $how != reuse ] || printf '\nThis run was finished before; RESTART=1 moves it aside and %s\n' \
  "starts over."
