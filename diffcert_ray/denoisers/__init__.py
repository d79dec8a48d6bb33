"""Denoisers D(u; s, y): their protocol, networks and checkpoints."""
