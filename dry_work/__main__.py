"""`python -m dry_work`."""

from dry_work.cli import main

main()
