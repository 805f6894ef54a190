"""The command line; :mod:`~deltasam_fairseq.cli.main` is the entry."""
