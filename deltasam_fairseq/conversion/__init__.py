"""From the BARTs, BERTs and RoBERTas that people have to checkpoints that fairseq fine-tunes."""
