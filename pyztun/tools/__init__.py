"""pyztun: tools that use what every user has: the library and the two commands."""
