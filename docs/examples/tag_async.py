"""Tag many clips, four at once: python tag_async.py CLIP..."""

import asyncio
import sys

from music_tagger_client import AsyncClient


async def main(paths: list[str]) -> None:
    """Tag all of them and print what is present."""
    at_once = asyncio.Semaphore(4)

    async with AsyncClient() as client:

        async def tag(path: str) -> None:
            async with at_once:
                tagging = await client.tag(path)
            print(path, *(f"{tag.tag} {tag.score:.2f}{'*' if tag.present else ''}" for tag in tagging.tags))

        async with asyncio.TaskGroup() as tasks:
            for path in paths:
                tasks.create_task(tag(path))


asyncio.run(main(sys.argv[1:]))
