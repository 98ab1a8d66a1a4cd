"""How threads wait in the command `cpsl`. `cpsl` imports this module first, before torch."""

import os
import sys
from pathlib import Path

# Threads of OpenMP spin while they wait for work and so take the cores from the processes beside them: two
# runs on two cores would slow each other down more than four times instead of twice. If they sleep at once, a
# run alone takes 1.4 times as long, since each operation has to wake them. The OpenMP of GCC, which torch has
# on Linux, spins this often before it sleeps, for microseconds. It reads the variables once, when torch is
# loaded.
# A library must not change its process, a command may. In `python -m cpsl` the first argument is still "-m"
# while the package is imported.
if Path(next(iter(sys.argv), "")).stem in ("cpsl", "-m") and "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "300")
