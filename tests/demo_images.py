"""The demo's collections cut down, so that a test indexes few images."""

from dataclasses import replace
from zipfile import ZipFile

from nsfse.demo.app import TABLE


def cut(collection, folder, count, *names):
    """Return `collection` with `count` of its images, evenly chosen, and with the files whose names end as `names`."""
    archive = folder / f"{collection.name}-few.zip"
    with ZipFile(collection.archive) as whole, ZipFile(archive, "w") as few:
        files = [name for name in whole.namelist() if name != TABLE]
        chosen = [*files[:: len(files) // count][:count], *(name for name in files if name.endswith(names))]
        lines = whole.read(TABLE).decode().splitlines(keepends=True)
        for name in dict.fromkeys(chosen):
            few.writestr(name, whole.read(name))
        few.writestr(TABLE, "".join([lines[0], *(line for line in lines if line.split(",")[1] in chosen)]))
    return replace(collection, archive=archive)
