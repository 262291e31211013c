"""pyztun-cni add, del, list, status: HTTP to the control socket of the agent."""
