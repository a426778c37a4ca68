"""What libraries look for in the environment when they are imported: scripts import this before them."""

import os

# Else albumentations asks a server for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# How often a thread of torch's looks for work before it sleeps: for some 30 us, not a millisecond. Beside other
# work on the same cores, threads that spin take them from those they wait for, and a step takes some six times as
# long.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
