"""Scores and baselines, each with a signature; no fairseq in here."""
