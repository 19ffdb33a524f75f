"""Search a folder of images by an image and a few words; what is new in the folder is indexed first.

python examples/folder_search.py BUNDLE FOLDER IMAGE "make it red"
"""

import sys

from nsfse_runtime import Gallery, NsfseError, Result, Retriever, open_model


def search(bundle_folder: str, folder: str, image: str, text: str) -> Result:
    """Index `folder` into the gallery beside it, and search it for 8 images."""
    model = open_model(bundle_folder)
    with Gallery.open(f"{folder.rstrip('/')}.gallery", model, create=True) as gallery:
        report = gallery.sync(folder)
        print(f"{len(gallery)} images, {report.encoded} of them new")
        for path, reason in report.failed:
            print(f"left out: {path}: {reason}")
        return Retriever(model, gallery).query(image, text, k=8)


def show(result: Result) -> None:
    """Print a line for each hit, with the words that it does not match."""
    for rank, hit in enumerate(result.hits, 1):
        missed = [word.word for word in hit.evidence if not word.matched]
        print(f"{rank}. {hit.score:6.2f}  {hit.path}", f"  not: {' '.join(missed)}" if missed else "")
    if result.has_match is False:
        print("nothing here matches")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    try:
        show(search(*sys.argv[1:]))
    except NsfseError as error:
        sys.exit(str(error))
