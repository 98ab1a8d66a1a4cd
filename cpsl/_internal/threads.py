"""How threads wait in the command `cpsl`. `cpsl` imports this module first, before torch."""

import os
import sys
from pathlib import Path

# Threads of OpenMP spin while they wait for work and so take the cores from the processes beside them: two
# runs on two cores would slow each other down six times instead of twice. OpenMP reads its variables once,
# when torch is loaded. A library must not change its process, a command may.
# In `python -m cpsl` the first argument is still "-m" while the package is imported.
if Path(next(iter(sys.argv), "")).stem in ("cpsl", "-m"):
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
