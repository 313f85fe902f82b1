"""The command line: parse, call, print; nothing else.

Exit codes: 0 done; 1 the run or the cohort did not pass; 2 config or usage; 3 cohort or cache; 4 training or
checkpoint; 5 federation; 6 the site's policy; 9 unexpected; 130 interrupted; 128 + n ended by signal n.
"""

from parametrium.cli.frame import app, main

__all__ = ["app", "main"]
