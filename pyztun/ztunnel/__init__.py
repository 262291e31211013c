"""pyztun-ztunnel: takes netns descriptors, makes listeners in each pod, and stays at home."""
