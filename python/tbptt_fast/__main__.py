"""`python -m tbptt_fast`: see `tbptt_fast.cli`."""

import sys

from tbptt_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
