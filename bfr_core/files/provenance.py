"""What a restored picture says of itself: by what its faces were restored, and that their details are generated.

One XMP packet serves every format. It holds IPTC's digital source type, which other programs know, and the restorations
as JSON. Packets of photos are untrusted: entities are refused, sizes are capped, and only known properties are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

NOTICE = "Details of the faces are generated; not for identifying anyone."
TEXT_KEY = "BFR Adapt"  # key of the same record in words, in a PNG
MAX_STEPS = 16  # restorations that are listed
MAX_WRITTEN = 60_000  # bytes of a packet; a JPEG holds 65,502
MAX_READ = 1 << 20
_MAX_TEXT, _MAX_SETTINGS = 120, 24

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
COMPOSITE = _SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
GENERATED = _SOURCE_TYPES + "trainedAlgorithmicMedia"  # the whole picture
_SPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "bfr": "urn:bfr-adapt:restoration/1/",
}
_READ = {"Iptc4xmpExt": ("DigitalSourceType",), "bfr": ("Steps", "Earlier")}
# A path from the root of a disk, up to its last name; a URL is none.
_ABSOLUTE = re.compile(r"(?<![\w.\\/])(?:file:/*)?(?:[A-Za-z]:)?(?!(?<=:)//)[\\/](?:.*[\\/])?")
_NAMES = ("restorer", "base", "prior")


@dataclass(frozen=True)
class Step:
    """One restoration. Names are of files, without folders; whatever is given is made short, printable, pathless."""

    software: str = ""
    restorer: str = ""
    sha256: str = ""
    licence: str = ""
    base: str = ""
    base_sha256: str = ""
    base_licence: str = ""
    prior: str = ""
    prior_sha256: str = ""
    prior_licence: str = ""
    faces_found: int = 0
    faces_restored: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = _safe(getattr(self, name))
            object.__setattr__(self, name, re.split(r"[\\/]", value)[-1] if name in _NAMES else value)

    def words(self) -> list[str]:
        """The same in words, one fact a line."""
        parts = [(what, *(getattr(self, what + end) for end in ("", "_sha256", "_licence"))) for what in _NAMES[1:]]
        return [
            f"{self.faces_restored} of {self.faces_found} faces found were restored by {self.software}",
            *(
                f"{what}: {name}, SHA-256 {sha256 or 'unknown'}, licence: {licence or 'unknown'}"
                for what, name, sha256, licence in [("restorer", self.restorer, self.sha256, self.licence), *parts]
                if name
            ),
            "settings: " + ", ".join(f"{key} {value}" for key, value in self.settings.items()),
        ]


@dataclass(frozen=True)
class Record:
    """What a picture's metadata says of its making.

    steps: restorations, the latest last. earlier: how many more came before them. source_type: IPTC's term, a URI, or
    "". problem: why the metadata of the file it came from could not be read.
    """

    steps: tuple[Step, ...] = ()
    earlier: int = 0
    source_type: str = ""
    problem: str = ""

    @property
    def says_generated(self) -> bool:
        """Whether the picture says that it, or details of it, were generated."""
        return bool(self.steps) or self.source_type in (GENERATED, COMPOSITE)

    def with_step(self, step: Step | None) -> Record:
        """This record and one more restoration; only the latest are listed.

        A picture that was generated as a whole keeps that source type.
        """
        if step is None:
            return self
        steps = (*self.steps, step)
        source_type = GENERATED if self.source_type == GENERATED else COMPOSITE
        earlier = self.earlier + max(0, len(steps) - MAX_STEPS)
        return replace(self, steps=steps[-MAX_STEPS:], earlier=earlier, source_type=source_type)

    def words(self) -> list[str]:
        """The same in words, one fact a line; nothing for a picture that says nothing."""
        lines = [NOTICE] if self.steps else []
        lines += [f"IPTC digital source type: {self.source_type}"] if self.source_type else []
        lines += [f"{self.earlier} earlier restorations are no longer listed"] if self.earlier else []
        for number, step in enumerate(self.steps, self.earlier + 1):
            lines += [f"restoration {number}: {line}" if len(self.steps) > 1 else line for line in step.words()]
        return lines


def to_packet(record: Record) -> bytes | None:
    """`record` as an XMP packet of at most MAX_WRITTEN bytes, or None if there is nothing to say."""
    if not (record.steps or record.source_type):
        return None
    values = {"Iptc4xmpExt:DigitalSourceType": record.source_type}
    steps = ""
    if record.steps:
        last = record.steps[-1]
        values |= {"xmp:CreatorTool": last.software, "bfr:Notice": NOTICE, "bfr:Earlier": str(record.earlier)}
        values |= {"bfr:Restorer": last.restorer, "bfr:RestorerSHA256": last.sha256}
        listed = json.dumps([asdict(step) for step in record.steps], ensure_ascii=False)
        steps = f"<bfr:Steps>{escape(listed)}</bfr:Steps>"
    spaces = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in _SPACES.items())
    attributes = "".join(f"\n {key}={quoteattr(value)}" for key, value in values.items())
    packet = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF {spaces}>\n<rdf:Description rdf:about=""{attributes}>\n{steps}\n</rdf:Description>\n'
        '</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    ).encode()
    if len(packet) > MAX_WRITTEN and len(record.steps) > 1:
        return to_packet(replace(record, steps=record.steps[1:], earlier=record.earlier + 1))
    return packet


def read_packet(packet: bytes) -> Record:
    """What an XMP packet says. It never raises: what is wrong with the packet is the record's `problem`."""
    if len(packet) > MAX_READ:
        return Record(problem=f"its XMP has {len(packet):,} bytes, more than the {MAX_READ:,} that are read")
    try:
        found = _properties(packet.rstrip(b"\0 "))
        steps = tuple(_step(values) for values in json.loads(found.get("bfr Steps", "[]")))
        earlier = int(found.get("bfr Earlier", "0")[:9])
    except (expat.ExpatError, ValueError, LookupError, TypeError, RecursionError) as error:
        return Record(problem=f"its XMP is damaged ({_safe(str(error))})")
    source_type = found.get("Iptc4xmpExt DigitalSourceType", "").strip()
    known = re.fullmatch(re.escape(_SOURCE_TYPES) + r"\w{1,60}", source_type.replace("https:", "http:", 1), re.ASCII)
    earlier = max(0, earlier) + max(0, len(steps) - MAX_STEPS)
    return Record(steps[-MAX_STEPS:], earlier, known[0] if known else "")


def _properties(packet: bytes) -> dict[str, str]:
    """Text of the properties that are known here, written as attributes or as elements, by "prefix name"."""
    short = {f"{uri} {name}": f"{prefix} {name}" for prefix, uri in _SPACES.items() for name in _READ.get(prefix, ())}
    found: dict[str, str] = {}
    text: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        text.clear()
        found.update({short[key]: value for key, value in attributes.items() if key in short})

    def end(name: str) -> None:
        if name in short:
            found[short[name]] = "".join(text)
        text.clear()

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type, which no XMP needs")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = refuse  # entities could only be declared in there
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text.append
    parser.Parse(packet, True)
    return found


def _step(values: Any) -> Step:
    """A step read from a file: only known fields of the right type are taken."""
    if not isinstance(values, dict):
        raise TypeError("a restoration in it is no table")
    given = {f.name: values[f.name] for f in fields(Step) if f.name in values}
    default = Step()
    return Step(**{name: value for name, value in given.items() if type(value) is type(getattr(default, name))})


def _safe(value: Any) -> Any:
    """`value` fit to be written and shown: no control characters, no path from a root, not long, not nested."""
    if isinstance(value, Mapping):
        items = list(value.items())[:_MAX_SETTINGS]
        return {_safe(str(key)): _safe(v if isinstance(v, int | float) else str(v)) for key, v in items}
    if isinstance(value, int | float) and abs(value) < 1 << 53:
        return value
    text = "".join(c if c.isprintable() else "?" for c in str(value)[: 10 * _MAX_TEXT])
    return pathless(text)[:_MAX_TEXT]


def pathless(text: str) -> str:
    """`text` without the folders of a path from the root of a disk; of several paths the last name stays."""
    return _ABSOLUTE.sub("", text)
