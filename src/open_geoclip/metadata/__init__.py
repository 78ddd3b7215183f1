"""What is written in an image's file beside its pixels: read, written and removed without touching these."""
