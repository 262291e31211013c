"""Capture: what podside does to real pods, and what their traffic meets then."""
