"""Measure contestants side by side: measure.py starts processes, each a worker.py, and report.py writes the pages."""
