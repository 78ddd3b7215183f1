"""Frozen image backbones."""
