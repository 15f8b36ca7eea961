"""Networks with their weights: files in and out, teachers of others, the networks of cells and records."""
