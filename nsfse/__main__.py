"""`python -m nsfse` is `nsfse`: what `torchrun -m nsfse` starts."""

from nsfse.cli.app import main

main()
