"""`adbench report`: records in, the paper's tables and figures out. Needs no torch.

records --> results.runs --> tables/  --> Table (model) --> render, page --> HTML, LaTeX, Markdown, CSV, Parquet
          (over seeds)       figures/ --> Plot ----------------------------> SVG, PNG, PDF
cross.json, cam.json -------> cross, attribution --> Table, Plot
"""
