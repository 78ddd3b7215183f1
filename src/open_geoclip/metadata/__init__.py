"""What is written in a picture's file beside its pixels: read, written and removed without touching these."""
