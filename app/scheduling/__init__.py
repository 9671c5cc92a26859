"""Who is next, where, and when it will be done: the parts of the GpuScheduler."""
