"""Compiled inner loops: C++ sources, how they are built at first use, and their typed bindings."""
