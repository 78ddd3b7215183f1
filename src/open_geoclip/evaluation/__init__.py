"""Evaluation: how far off the answers are."""
