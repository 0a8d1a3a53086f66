"""What runs and studies have found: figures, tables and one page, and a list of them."""
