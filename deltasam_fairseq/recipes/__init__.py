"""What to run: recipes as data, and running them through fairseq's programs."""
