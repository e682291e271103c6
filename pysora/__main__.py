"""`python -m pysora` is the command `pysora`."""

from pysora.cli import main

main()
