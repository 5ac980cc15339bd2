"""`python -m fairlead.cli`, the same as the `fairlead` script."""

from fairlead.cli import main

main()
