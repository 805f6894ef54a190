"""Programs that run a checkpoint over a split; ``python -m deltasam_fairseq.inference PROGRAM``."""
