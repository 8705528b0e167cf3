"""Types a name on a screen with asyncvnc and waits for the answer.

    login.py PORT PASSWORD NAME ANSWER.png BEFORE.png AFTER.png

BEFORE and AFTER are written: the screen at first, and when it has become ANSWER.
"""

import asyncio
import sys

import asyncvnc
import numpy
from PIL import Image


async def main(port, password, name, answer, before, after):
    expected = numpy.asarray(Image.open(answer).convert("RGBA"))
    async with asyncvnc.connect("127.0.0.1", int(port), None, password) as client:
        Image.fromarray(await client.screenshot()).save(before)
        client.keyboard.write(name)
        client.keyboard.press("Return")
        while not numpy.array_equal(client.video.as_rgba(), expected):
            # Incremental: the server answers when something changes.
            client.video.refresh()
            while await client.read() is not asyncvnc.UpdateType.VIDEO:
                pass
        Image.fromarray(client.video.as_rgba()).save(after)


asyncio.run(main(*sys.argv[1:]))
