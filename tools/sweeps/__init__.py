"""What `tools/kill-sweep` does to quanteased, a module for each kind of it."""
