"""Telling a client's server how its job goes: where that may be, one signed attempt, order, retries."""
