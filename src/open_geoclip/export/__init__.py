"""Answers shown to people and to other programs; here nothing is computed that search has not answered."""
