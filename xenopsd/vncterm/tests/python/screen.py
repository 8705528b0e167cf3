"""Prints the screen, 80x24, that pyte makes of a file's bytes.

    screen.py FILE
"""

import sys

import pyte

screen = pyte.Screen(80, 24)
with open(sys.argv[1], "rb") as file:
    pyte.ByteStream(screen).feed(file.read())
sys.stdout.reconfigure(encoding="utf-8")
print("\n".join(screen.display))
