"""Files, locks, downloads, terminals and processors: what adbench needs of the system below it."""
