"""BERT for fairseq, and classification scored with the metrics of its task."""
