"""pyztun-cni agent: knows the workloads of a node and serves ZDS to every ztunnel."""
