"""`python -m oss_tools` is `oss-tools`."""

from oss_tools.cli.main import main

main()
