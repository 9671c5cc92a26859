"""The hands that draw: pools of workers behind one seam."""
