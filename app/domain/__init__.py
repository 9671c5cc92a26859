"""What Easel talks about, as pure values: no I/O, no torch, no HTTP, no clock, no randomness."""
