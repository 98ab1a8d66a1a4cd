"""Class-Balanced Pixel-Level Self-Labeling for domain-adaptive semantic segmentation."""
