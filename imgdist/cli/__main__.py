"""`python -m imgdist.cli`, for machines where the script is not on PATH."""

from imgdist.cli import main

main()
