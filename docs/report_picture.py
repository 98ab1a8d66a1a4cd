"""Draws the picture of a report in the README, with Chromium.

Example:
    cpsl demo
    python docs/report_picture.py
"""

import subprocess
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1100, 1118  # header, verdict and stages

report = Path("runs/demo/report.html").resolve()
picture = Path(__file__).parent / "pictures/report.png"
subprocess.run(
    [
        *("chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=3000"),
        *(f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", report.as_uri()),
    ],
    check=True,
    stderr=subprocess.DEVNULL,
)
with Image.open(picture) as drawn:
    smaller = drawn.convert("RGB").quantize(64)
smaller.save(picture, optimize=True)
