"""The relay: real connections of captured pods, through a real ztunnel."""
