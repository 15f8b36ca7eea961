"""`adbench board`: a public board of results, whose numbers anybody can attack."""
