"""Capture: the rules in a pod that send its TCP to ztunnel, and podside, which puts them there."""
