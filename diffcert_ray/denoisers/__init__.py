"""Denoisers D(u; s, y): their protocol, their networks and where they compute."""
