"""Training: the contract of a method, the loop around it, and what makes it fast and safe."""
