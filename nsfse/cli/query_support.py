"""What `nsfse query` checks before it searches, writes beside its answer, and explains where there is none."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nsfse.cli.arguments import conditions
from nsfse.cli.reports import NO_MATCH
from nsfse.open import image_file
from nsfse.progress import print_status
from nsfse_runtime.errors import NotFoundError, OutputError, UsageError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.image_names import stem
from nsfse_runtime.output_files import PAGE, SHEET, check_output
from nsfse_runtime.retrieval.query import Query
from nsfse_runtime.retrieval.references import NOT_FETCHED, is_url
from nsfse_runtime.retrieval.results import Result
from nsfse_runtime.retrieval.retriever import Retriever
from nsfse_runtime.retrieval.views import View


def image_and_text(
    view: View, image: str | None, text: str | None, words: str | None, *, alone: bool
) -> tuple[str | None, str | None]:
    """Return the image and the text of a query; a single argument that names no image is a text.

    Args:
        view: The gallery that is searched.
        image: The first argument.
        text: The second argument.
        words: The value of --text.
        alone: Whether the query has no other texts or images.

    Raises:
        UsageError: Both `text` and `words` are given.
    """
    if words is not None:
        if text is not None:
            raise UsageError(f"the text is given twice, as {text!r} and as --text {words!r}; give it once")
        return image, words
    if image is None or text is not None or not alone or Path(image).exists() or _is_image_name(image):
        return image, text
    names = _images_called(view, image)
    shown = printable(image[:80])
    if names:
        if image not in names:
            print_status(f'nsfse: {shown} is read as the image {names[0]}; for words: --text "{shown}"')
        return image, text
    print_status(f'nsfse: no image is called {shown}, so it is read as words, as with --text "{shown}"')
    return None, image


def numbers(text: str | None, option: str) -> tuple[float, ...]:
    """Return the numbers of an option, separated by commas. Raises UsageError."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{option} {text!r} is no list of numbers; write them as 1,0.5") from None


def _is_image_name(name: str) -> bool:
    return name == "-" or is_url(name) or stem(name) != name


def _images_called(view: View, name: str) -> tuple[str, ...]:
    """Return the image of the gallery that is called `name`, or `name` itself where several are."""
    try:
        return (view.find(name),)
    except NotFoundError:
        return ()
    except UsageError:
        return (name,)


def check_references(images: Sequence[str]) -> None:
    """Raise UsageError where one of a query's images is a URL or stdin."""
    for image in images:
        if image == "-":
            raise UsageError("an image is not read from stdin; save it to a file and name that")
        if is_url(image):
            raise UsageError(NOT_FETCHED)


def check_sheets(view: View, images: Sequence[str], png: Path | None, html: Path | None) -> None:
    """Check that a sheet and a page may be written.

    Args:
        view: The gallery that is searched.
        images: The images of the query.
        png: The sheet.
        html: The page.

    Raises:
        OutputError: The file exists and nsfse did not write it, or it is an image of the gallery or
            the query.
        UsageError: The file has another suffix.
    """
    for path, kind in ((png, SHEET), (html, PAGE)):
        if path is None:
            continue
        check_output(path, kind)
        folder, real = Path(view.folder), Path(path).resolve()
        indexed = real.is_relative_to(folder) and view.has(real.relative_to(folder).as_posix())
        if indexed or real in {Path(image).resolve() for image in images}:
            raise OutputError(f"{printable(str(path))} is an image of the gallery or the query; choose another name")


def write_sheets(
    view: View,
    image: str | None,
    query: Query,
    result: Result,
    png: Path | None,
    html: Path | None,
    further: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a query's hits as a contact sheet and as a page, where they are wanted.

    Args:
        view: The gallery of the hits.
        image: The query's first reference; None for words alone.
        query: The query.
        result: Its result.
        png: The contact sheet; None for none.
        html: The page; None for none.
        further: The query's further images, each with its label: "and like", "not like".

    Raises:
        OutputError: A file cannot be written.
    """
    if not (png or html):
        return
    from nsfse_runtime.visualize.contact_sheet import contact_sheet
    from nsfse_runtime.visualize.html_page import html_page
    from nsfse_runtime.visualize.rows import sheet_row

    text = "; ".join([*query.texts, *(f"without {negative}" for negative in query.negative_texts)])
    names = [*([Path(image).name] if image else []), *(f"{label} {Path(name).name}" for label, name in further)]
    note = ", ".join([NO_MATCH, *names] if result.has_match is False else names)
    others = [(label, image_file(view, name)) for label, name in further]
    reference = image_file(view, image) if image else None
    row = sheet_row(reference, text, result.hits, note=note, more=others, notes=result.notes)
    if png:
        contact_sheet([row], png)
    if html:
        html_page([row], html, title=f"nsfse: {text}")


def why_empty(retriever: Retriever, where: Sequence[str], result: Result) -> str:
    """Return why a query without a threshold on confidence has no hits.

    Args:
        retriever: What was searched.
        where: The values of --where.
        result: The result without hits.
    """
    with retriever.reading() as view:
        if not len(view):
            failed = retriever.gallery.failures() if isinstance(retriever.gallery, Gallery) else []
            return _why_no_images(failed)
        if result.total:
            return f"no more hits: {result.total} in all"
        if not where:
            return "the gallery has no image but those of the query"
        if view.count(conditions(where)):
            reason = "no image but those of the query fits these conditions"
        elif unmet := next((text for text in where if not view.count(conditions([text]))), None):
            reason = printable(f"no image in the gallery fits {unmet}")
        else:
            reason = "no image in the gallery fits all of these conditions"
    return "\n".join([*map(printable, result.notes), reason])


def _why_no_images(failed: Sequence[tuple[str, str]]) -> str:
    if not failed:
        return "the gallery is empty; index a folder of images: nsfse index GALLERY FOLDER"
    (reason, count), *rest = Counter(reason for _, reason in failed).most_common()
    others = f"; {len(rest)} other reasons: nsfse index lists them" if rest else ""
    return f"the gallery is empty: no file could be taken ({count} of {len(failed)}: {printable(reason)}{others})"
