"""Fails closed: what a captured pod's connections get when something is dead, lost or half done."""
