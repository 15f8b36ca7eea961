"""Records to tables, one module a section of the report."""
