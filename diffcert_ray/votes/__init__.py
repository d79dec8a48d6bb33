"""The votes of an image: units, their state, and which come next."""
