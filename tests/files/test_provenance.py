"""What restored pictures record of themselves, and how much of the records of strange pictures is believed."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict

import pytest

from bfr_core.files.provenance import (
    COMPOSITE,
    GENERATED,
    MAX_READ,
    MAX_STEPS,
    MAX_WRITTEN,
    NOTICE,
    Record,
    Step,
    read_packet,
    to_packet,
)

STEP = Step(
    "BFR Adapt 1.2.3", "r.safetensors", "ab" * 32, "MIT", base="b.pth", prior="p.pth", prior_licence="CC BY-NC 4.0",
    faces_found=3, faces_restored=2, settings={"size": 128, "blend": 0.5, "match_colour": True, "detector": "embedded"},
)  # fmt: skip
DESCRIPTION = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
HOSTILE = "]]>--><x a='\"&amp;&lol;\0\n\x1b[31m\ud800\ufffe\u202e é 漢.pth"


def packet_of(record: Record) -> bytes:
    packet = to_packet(record)
    assert packet is not None
    return packet


def test_a_record_survives_its_packet():
    record = Record().with_step(STEP).with_step(Step("BFR Adapt 2", "s.pth", faces_found=1, faces_restored=1))
    assert read_packet(packet_of(record)) == record
    assert [step.restorer for step in record.steps] == ["r.safetensors", "s.pth"]


def test_other_programs_find_the_source_type_and_the_notice():
    description = ElementTree.fromstring(packet_of(Record().with_step(STEP))).find(f".//{DESCRIPTION}")
    assert description.get(f"{IPTC}DigitalSourceType") == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    )
    assert NOTICE in description.attrib.values() and "BFR Adapt 1.2.3" in description.attrib.values()


def test_the_words_name_everything():
    words = "\n".join(Record().with_step(STEP).words())
    for part in ("generated; not for identifying", "2 of 3", "BFR Adapt 1.2.3", "r.safetensors", "ab" * 32, "MIT",
                 "b.pth", "p.pth", "CC BY-NC 4.0", "size 128", "detector embedded"):  # fmt: skip
        assert part in words


def test_where_nothing_was_restored_nothing_is_claimed():
    assert Record().with_step(None) == Record()
    assert to_packet(Record()) is None and Record().words() == []
    assert to_packet(Record(problem="damaged")) is None


def test_a_picture_that_is_generated_as_a_whole_stays_so():
    camera = COMPOSITE.replace("compositeWithTrainedAlgorithmicMedia", "digitalCapture")
    assert Record(source_type=GENERATED).with_step(STEP).source_type == GENERATED
    assert Record(source_type=camera).with_step(STEP).source_type == COMPOSITE
    kept = read_packet(packet_of(Record(source_type=camera)))
    assert kept.source_type == camera and not kept.steps and NOTICE not in kept.words()


@pytest.mark.parametrize(
    "name", [HOSTILE, "a" * 5000, "", "..", "漢" * 100], ids=["signs", "long", "none", "dots", "wide"]
)
def test_hostile_names_stay_text(name):
    record = Record().with_step(Step(name, name, name, name, base=name, settings={name: name, "detector": name}))
    packet = packet_of(record)
    root = ElementTree.fromstring(packet)  # well-formed, and nothing more in it than usual
    assert len(list(root.iter())) == len(list(ElementTree.fromstring(packet_of(Record().with_step(STEP))).iter()))
    assert read_packet(packet) == record
    assert all(line.isprintable() and len(line) < 1000 for line in record.words())


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/srv/secret/r.pth", "r.pth"),
        ("/secret.pth", "secret.pth"),
        (r"D:\secret folder\r.pth", "r.pth"),
        ("D:/secret/r.pth", "r.pth"),
        (r"\\host\secret\r.pth", "r.pth"),
        ("//host/secret/r.pth", "r.pth"),
        ("file:///srv/secret/r.pth", "r.pth"),
        ("see:/srv/secret/r.pth", "see:r.pth"),
        ("~/secret/r.pth", "~r.pth"),
        ("terms in (/srv/secret/A B/r.pth)", "terms in (r.pth)"),
        ("https://example.org/licenses/by", "https://example.org/licenses/by"),
        ("MIT/X11", "MIT/X11"),
    ],
)
def test_no_path_from_a_root_is_kept(text, left):
    step = Step(software=text, licence=text, settings={"detector": text, text: 1})
    assert step.software == step.licence == step.settings["detector"] == left and left in step.settings
    for name in ("restorer", "base", "prior"):  # file names, without any folder
        assert "/" not in getattr(Step(**{name: text}), name)
    assert b"secret/" not in packet_of(Record().with_step(step)) and b"secret\\" not in packet_of(Record((step,)))


def test_history_is_bounded_and_says_what_it_left_out():
    record = Record()
    for number in range(MAX_STEPS + 5):
        record = record.with_step(Step(f"version {number}"))
        record = read_packet(packet_of(record))
    assert len(record.steps) == MAX_STEPS and record.earlier == 5
    assert record.steps[-1].software == f"version {MAX_STEPS + 4}"
    assert any("5 earlier" in line for line in record.words())
    assert any(line.startswith(f"restoration {MAX_STEPS + 5}: ") for line in record.words())


@pytest.mark.parametrize("sign", ["\U0001f600", "&", '"', "x"])
def test_the_largest_packet_fits_a_jpeg(sign):
    wide = sign * 500
    texts = {name: wide for name, value in asdict(Step()).items() if value == ""}
    large = Step(**texts, settings={f"{i}{wide}": wide for i in range(100)})
    record = Record()
    for _ in range(MAX_STEPS):
        record = record.with_step(large)
    assert len(packet_of(record)) <= MAX_WRITTEN
    back = read_packet(packet_of(record))
    assert back.steps and len(back.steps) + back.earlier == MAX_STEPS


def around(inside: str, head: str = "") -> bytes:
    rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    text = f'{head}<r:RDF xmlns:r="{rdf}" xmlns:b="urn:bfr-adapt:restoration/1/" xmlns:i="{IPTC[1:-1]}">'
    return f'{text}<r:Description r:about="">{inside}</r:Description></r:RDF>'.encode()


def test_other_programs_may_write_it_differently():
    steps = json.dumps([{"restorer": "r.pth", "faces_restored": 1}])
    record = read_packet(
        around(f"<b:Steps>{steps}</b:Steps><i:DigitalSourceType>\n {COMPOSITE} </i:DigitalSourceType>")
    )
    assert record.steps == (Step(restorer="r.pth", faces_restored=1),) and record.source_type == COMPOSITE
    assert read_packet(around("") + b"  \0\0") == Record()


BOMB = '<!DOCTYPE x [<!ENTITY a "ha">' + "".join(f'<!ENTITY a{i} "{"&a" * 10};">' for i in range(20)) + "]>"


@pytest.mark.parametrize(
    "packet",
    [
        b"not XML",
        b"",
        b"<a>" * 100_000,
        around("")[:-9],
        around("&unknown;"),
        around("&a9;", BOMB),
        around("", BOMB).decode().encode("utf-16"),
        around("", '<!DOCTYPE x SYSTEM "file:///etc/hostname">'),
        around("", '<?xml version="1.0" encoding="no-such"?>'),
        b"\xff\xfe\0\0" * 10,
        around("") + b" " * MAX_READ,
        around("<b:Steps>[</b:Steps>"),
        around("<b:Steps>7</b:Steps>"),
        around('<b:Steps>["text"]</b:Steps>'),
        around('<b:Steps>{"a": 1}</b:Steps>'),
        around(f"<b:Steps>{'[' * 300_000}</b:Steps>"),
        around(f"<b:Steps>[{'9' * 9000}]</b:Steps>"),
        around("<b:Earlier>many</b:Earlier>"),
    ],
)
def test_a_hostile_packet_is_one_line(packet):
    record = read_packet(packet)
    assert record.problem.startswith("its XMP ") and record.problem.isprintable() and len(record.problem) < 200
    assert not record.steps and to_packet(record) is None


def test_what_a_strange_step_says_is_made_harmless():
    strange = {
        "restorer": "/srv/secret/\x1b]0;x\x07.pth", "licence": 7, "faces_found": "many", "faces_restored": True,
        "settings": {"a": {"b": [1]}, "c": float("nan"), "d": 10**400, "/srv/secret/e": "/srv/secret/f"}, "more": "x",
    }  # fmt: skip
    text = json.dumps([strange] * 1000).replace("&", "&amp;")
    record = read_packet(around(f"<b:Steps>{text}</b:Steps><i:DigitalSourceType>javascript:x</i:DigitalSourceType>"))
    assert len(record.steps) == MAX_STEPS and record.earlier == 1000 - MAX_STEPS and record.source_type == ""
    step = record.steps[0]
    assert (step.restorer, step.licence, step.faces_found, step.faces_restored) == ("?]0;x?.pth", "", 0, 0)
    assert step.settings["c"] == "nan" and step.settings["e"] == "f" and "secret" not in str(step)
    assert json.loads(json.dumps(asdict(record), allow_nan=False))
