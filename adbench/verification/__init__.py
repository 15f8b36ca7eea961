"""`adbench verify`: whether a record follows from what lies beside it."""
