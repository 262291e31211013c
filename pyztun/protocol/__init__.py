"""What passes over the socket, as pure functions: no I/O, no sockets, no os."""
