"""The one place that knows fairseq; see ``register`` for what it adds."""
