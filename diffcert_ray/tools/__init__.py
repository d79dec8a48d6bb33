"""What uses runs, and what no run uses: benchmarks, training and exact worlds."""
