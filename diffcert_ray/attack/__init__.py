"""Attacks on certificates: adversarial search inside the certified ball."""
