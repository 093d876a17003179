"""What is kept of market data: the log of what was received, and the catalog of Parquet files made from it."""
