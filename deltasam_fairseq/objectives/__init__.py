"""Losses of the paper's rivals and of Mirror-BERT, on PyTorch alone: one number per sentence."""
