"""What is left of an SVG of matplotlib's: one element in the reader's own font, without what says nothing."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

_NAMESPACE, _FONT = "http://www.w3.org/2000/svg", "font-family: system-ui, sans-serif"
_OVERHEAD = {"metadata", "style"}
_GROUPS = {"g", "defs"}
_TEXTS = {"text", "tspan"}
_PLACES = {"d", "x", "y", "width", "height", "transform", "viewBox"}  # attributes that are numbers of points
_DEFAULTS = {"stroke-linejoin: miter", "stroke-dashoffset: 0", "text-anchor: start"}
_UNTURNED = re.compile(r"rotate\(-?0 [^)]*\)")
_REFERENCE = re.compile(r"(?<=^#).+|(?<=url\(#)[^)]+")
_FRACTION = re.compile(r"-?\d+\.\d+")
_LINES = re.compile(r"[ML\d. -]+")


def bare(written: str) -> str:
    """The `<svg>` of a file that matplotlib wrote.

    Numbers are rounded to a tenth of a point, which is finer than a screen; only what is referred to has a name.
    """
    root = ElementTree.fromstring(written[written.index("<svg") :])
    names = _names(root)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = dict(_attributes(element, names))
        if element.tag not in _TEXTS:
            element.text = None
        element.tail = None
    (root,) = _telling(root)
    root.attrib = {"xmlns": _NAMESPACE, "style": _FONT, **root.attrib}
    return ElementTree.tostring(root, encoding="unicode")


def _names(root: ElementTree.Element) -> dict[str, str]:
    """A short name for each that something refers to, in their order."""
    there = {element.get("id") for element in root.iter()}
    values = (value for element in root.iter() for value in element.attrib.values())
    found = dict.fromkeys(name for value in values for name in _REFERENCE.findall(value) if name in there)
    return {name: f"n{place}" for place, name in enumerate(found)}


def _attributes(element: ElementTree.Element, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Those of an element that say something, as short as they can be."""
    for key, value in element.items():
        if key == "id":
            if value in names:
                yield key, names[value]
        elif key == "style":
            kept = [rule for rule in value.split("; ") if rule not in _DEFAULTS and not rule.startswith("font-family")]
            if kept:
                yield key, "; ".join(kept)
        elif key in _PLACES:
            if not _UNTURNED.fullmatch(value):
                yield key, _rounded(value)
        elif key != "version":
            yield _local(key), _REFERENCE.sub(lambda found: names.get(found.group(0), found.group(0)), value)


def _rounded(numbers: str) -> str:
    """Coordinates and paths. In one of lines alone, the numbers behind the first pair are ends of lines unsaid."""
    short = _FRACTION.sub(lambda found: f"{float(found.group(0)):.1f}".removesuffix(".0"), numbers)
    short = " ".join(short.split())
    return short.replace(" L ", " ") if _LINES.fullmatch(short) else short


def _telling(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """An element without what is of no use in it; what a group holds that says nothing of it, in the group's place."""
    if element.tag in _OVERHEAD:
        return
    children = [kept for child in element for kept in _telling(child)]
    element[:] = children
    if element.tag not in _GROUPS or (children and (element.attrib or element.tag == "defs")):
        yield element
    elif element.tag == "g":
        yield from children


def _local(name: str) -> str:
    """A name without its namespace: an HTML page knows `<svg>` and `href` by themselves."""
    return name.rpartition("}")[2]
