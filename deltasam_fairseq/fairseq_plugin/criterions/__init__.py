"""The loss of each sentence: criterions of the project, and readers of fairseq's own."""
