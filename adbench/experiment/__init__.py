"""What is to be run: validated settings, and the cells that they make. Free of torch."""
