"""Data of the quality benchmark: shifts of labeled photographs and generated fields."""
