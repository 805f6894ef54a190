"""What the methods cost, in time and memory, on synthetic input."""
