"""Units, losses and certificates as Parquet, in a folder or S3 prefix, each file written once."""
