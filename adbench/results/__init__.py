"""Records: what cells leave behind, and what is read off many of them. Free of torch."""
