"""``python -m thalweg.cli``."""

from thalweg.cli.main import main

main()
