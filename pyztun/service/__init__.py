"""What both services share: how they start, log, tell their manager, and end."""
