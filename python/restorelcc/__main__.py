"""`python -m restorelcc` is the command line."""

from restorelcc.cli import main

main()
