"""``python -m deltasam_fairseq.decoding …``: takes the arguments of ``fairseq-generate``."""

from fairseq_cli.generate import cli_main

from deltasam_fairseq.decoding import register  # noqa: F401

if __name__ == "__main__":
    cli_main()
