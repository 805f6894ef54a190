"""Tasks of the plugin."""
