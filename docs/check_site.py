"""Check the built site: nothing it needs is fetched from elsewhere or missing, and it tells no path of the machine.

python docs/check_site.py build/site
"""

import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, by tag and attribute.
FETCHED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


class Page(HTMLParser):
    """Collects the addresses in one page: `fetched` by a browser, and `links` that a reader may follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses of one tag."""
        for name, value in attrs:
            if (tag, name) in FETCHED:
                self.fetched.append(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.append(value or "")


def faults(site: Path) -> list[str]:
    """Return what is wrong with the site, a line each."""
    pages = sorted(site.rglob("*.html"))
    found = [] if pages else [f"{site} holds no page; build it with: make docs"]
    for path in pages:
        text = path.read_text("utf-8")
        page = Page(text)
        found += [f"{path.name} fetches {url}" for url in page.fetched if urlsplit(url).netloc]
        local = [url for url in (*page.fetched, *page.links) if not urlsplit(url).netloc and urlsplit(url).path]
        missing = {url for url in local if not (path.parent / unquote(urlsplit(url).path)).exists()}
        # The page of what is not found is shown at any address, so that its own are those of the site's top.
        found += [f"{path.name} needs {url}, which is not there" for url in sorted(missing) if path.name != "404.html"]
        places = {str(Path.home()), os.getcwd()} - {"/", "/root"}
        found += [f"{path.name} names a path of this machine, {place}" for place in sorted(places) if place in text]
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or "the site is whole")
    sys.exit(bool(wrong))
