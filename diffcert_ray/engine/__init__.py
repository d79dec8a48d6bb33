"""The parts of the engine that casts votes: an item's votes, their lanes, rows, batches."""
