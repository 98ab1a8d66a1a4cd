"""Data sets for domain adaptation, the views they are trained on and their pseudo labels."""
