#!/bin/sh
# Scores decoded summaries the way that docs/rouge.md recommends for a comparison with
# published numbers: as ROUGE-1.5.5 -n 2 -m does, with 95 % confidence intervals.
#
#     scripts/rouge.sh HYPOTHESES REFERENCES [further options of `deltasam score rouge`]
#
# Raw text (cased, not tokenized), one summary per line, line n of one file for line n of the
# other. Sentences are cut behind . ! ? and into Penn Treebank words. An option that is given
# again replaces the one below: for files that mark sentences with <q>, add --split newline.
#
# Needs the environment of `make environment` (its bin folder on PATH). A minute for the 11,490
# summaries of CNN/DailyMail.
set -eu
hypotheses=${1:?name the file of decoded summaries}
references=${2:?name the file of references}
shift 2
deltasam score rouge "$hypotheses" "$references" \
  --like rouge-1.5.5 --split sentences --tokenize ptb --bootstrap "$@"
