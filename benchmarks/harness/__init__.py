"""What measures contestants side by side; nothing here imports torch before a worker is asked for it."""
