"""From the BART checkpoints that people have to one that fairseq can fine-tune."""
