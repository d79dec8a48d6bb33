"""Evaluates items on a device: networks loaded once, full batches, equal bits."""
