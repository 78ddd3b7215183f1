"""A photo held against the place that its metadata name."""
