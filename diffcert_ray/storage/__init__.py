"""Units, losses and certificates as Parquet in a folder or an S3 prefix, written once, read whole."""
