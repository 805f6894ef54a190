"""Models that fairseq does not ship."""
