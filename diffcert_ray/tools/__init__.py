"""What uses runs and is used by none: benchmarks and training."""
