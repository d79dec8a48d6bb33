"""Attacks on certificates: adversarial search inside the certified ball and beyond it."""
