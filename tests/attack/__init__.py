"""Attacks on a running service: each kind that once took it down, and random input by the hundred thousand."""
