"""Front doors: one file per protocol. Each turns a body into `Arguments` and job events into its own
wire format; none knows another."""
