"""Attacks by name, on real servers: none may succeed, and none may leave a trace of what is secret."""
