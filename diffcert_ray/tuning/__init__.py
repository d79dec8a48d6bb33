"""Tuning: head and sifting rule of a configuration, from images that it does not certify."""
