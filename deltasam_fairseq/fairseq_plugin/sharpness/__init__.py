"""SAM, delta-SAM and per-instance perturbation as steps of fairseq's trainer; see ``step``."""
