"""pyztun-cni: the node agent's side, which opens netns and passes their descriptors."""
