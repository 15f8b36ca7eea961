"""Records to figures: what to draw, and what all figures share."""
