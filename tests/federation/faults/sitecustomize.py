"""Python imports this module at its start wherever this folder is on PYTHONPATH: faults without a hook in the package.

Only a trainer process acts on it, and only where a test has written a plan.
"""

import json
import os
import sys

PLAN = "PARAMETRIUM_TEST_FAULTS"

if "parametrium.site.worker" in sys.orig_argv and PLAN in os.environ:
    from faulty_rounds import install

    install(json.loads(os.environ[PLAN]))
