"""Tuning: the head and the sifting rule of a configuration, from images that it does not certify."""
