"""The vote is blind, whole and counted right; files from voters are not trusted."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from bfr_core.cli.commands import main
from bfr_core.files.photos import write_image
from bfr_core.reports.html import data_uri
from bfr_core.studies.vote import make_ballot, tally

NAMES = [f"photo_{i}" for i in range(8)]
SHADE = {"damaged": 0.2, "a": 0.5, "b": 0.8}


@pytest.fixture
def folders(tmp_path):
    for role, shade in SHADE.items():
        for i, name in enumerate(NAMES):
            write_image(tmp_path / role / f"{name}.png", torch.full((3, 8, 8), shade + i / 100))
    return tmp_path


@pytest.fixture
def ballot(folders):
    made = make_ballot(folders / "damaged", folders / "a", folders / "b", folders / "out")
    return made.page, json.loads((folders / "out" / "key.json").read_text())


def votes_file(folder, ballot, votes, name="votes-1.json"):
    (folder / name).write_text(json.dumps({"ballot": ballot, "votes": votes}))
    return folder / name


def test_the_key_says_what_the_page_shows_and_the_page_does_not(ballot):
    page, key = ballot
    text = page.read_text()
    content = json.loads(re.search(r"const DATA = (.*);\n", text)[1])
    assert len(content["photos"]) == len(key["photos"]) == len(NAMES)
    assert {p["photo"] for p in key["photos"]} == set(NAMES) and not any(name in text for name in NAMES)
    for shown, known in zip(content["photos"], key["photos"], strict=True):
        i = NAMES.index(known["photo"])
        wanted = [SHADE["damaged"], SHADE[known["left"]], SHADE[known["right"]]]
        pictures = [torch.full((3, 8, 8), round((shade + i / 100) * 255) / 255) for shade in wanted]
        assert shown == [data_uri(picture) for picture in pictures]
    sides = [p["left"] for p in key["photos"]]
    assert 0 < sides.count("a") < len(sides)  # not always the same side


def test_votes_are_counted_by_the_key(folders, ballot):
    _, key = ballot
    for_a = ["left" if p["left"] == "a" else "right" for p in key["photos"]]
    first = votes_file(folders, key["ballot"], for_a)
    second = votes_file(folders, key["ballot"], ["same", "same", "", *for_a[3:]], "votes-2.json")
    found = tally(folders / "out" / "key.json", [first, second])
    assert (found.a, found.b, found.same, found.voters) == (13, 0, 2, 2)
    assert "A is preferred" in found.sentence() and found.share.low > 0.5
    undecided = tally(folders / "out" / "key.json", [votes_file(folders, key["ballot"], ["left"] * 8)])
    assert undecided.a and undecided.b and "no preference" in undecided.sentence()


@pytest.mark.parametrize(
    "content",
    ["no json", "[]", '{"ballot": "another", "votes": []}', {"votes": ["left"]}, {"votes": ["<b>"] * 8}],
    ids=["not JSON", "no object", "another ballot", "too few", "not a choice"],
)
def test_a_file_that_is_no_vote_is_left_out(folders, ballot, content, caplog):
    _, key = ballot
    good = votes_file(folders, key["ballot"], ["same"] * 8)
    bad = folders / "bad.json"
    bad.write_text(content if isinstance(content, str) else json.dumps(content | {"ballot": key["ballot"]}))
    found = tally(folders / "out" / "key.json", [bad, good])
    assert (found.voters, found.failed) == (1, ["bad.json"])
    assert main(["tally", str(folders / "out" / "key.json"), str(bad), str(good)]) == 1
    assert "left out: " in caplog.text and "bad.json" in caplog.text
    with pytest.raises(ValueError, match="none of the 1 files"):
        tally(folders / "out" / "key.json", [bad])


def test_the_commands(folders, capsys):
    out = str(folders / "out")
    assert (
        main(["vote", str(folders / "damaged"), "--a", str(folders / "a"), "--b", str(folders / "b"), "--out", out])
        == 0
    )
    key = json.loads((folders / "out" / "key.json").read_text())
    votes = votes_file(folders, key["ballot"], ["same"] * 8)
    assert main(["tally", f"{out}/key.json", str(votes)]) == 0
    assert "8 votes by 1 voter:" in capsys.readouterr().out
    assert main(["tally", str(votes), str(votes)]) == 2
    assert "is no key" in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_is_left_out_and_the_exit_status_says_so(folders, capsys):
    (folders / "a" / f"{NAMES[3]}.png").write_bytes(b"")
    sides = ["--a", str(folders / "a"), "--b", str(folders / "b")]
    assert main(["vote", str(folders / "damaged"), *sides, "--out", str(folders / "out"), "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["failed"] == [NAMES[3]]
    assert {photo["photo"] for photo in json.loads(Path(summary["key"]).read_text())["photos"]} == {*NAMES} - {NAMES[3]}


def test_a_voter_counts_once_and_by_the_last_file(folders, ballot, caplog):
    _, key = ballot
    files = [folders / name for name in ("votes-x.json", "votes-x (1).json", "votes-y.json")]
    for number, (file, voter, choice) in enumerate(zip(files, "xxy", ("left", "same", "same"), strict=True)):
        file.write_text(json.dumps({"ballot": key["ballot"], "voter": voter, "votes": [choice] * 8}))
        os.utime(file, (number, number))
    found = tally(folders / "out" / "key.json", [*files, files[2]])
    assert (found.voters, found.same, found.failed) == (2, 16, [])
    assert "votes-x.json: is of a voter who saved another file later" in caplog.text


ANOTHER = """
const before = state.voter;
while (place < state.votes.length) vote("left");
const shown = !element("end").hidden && element("save").download === `votes-${before}.json`;
const untilSaved = element("next").disabled;
element("next").click();
const stays = state.voter === before;
element("save").click();
element("next").click();
const anew = [state.voter !== before, place === 0, state.votes.every(v => v === ""), element("end").hidden];
return [shown, untilSaved, stays, ...anew];
"""


def test_another_person_votes_on_the_same_computer(folders, ballot, browser):
    browser.get((folders / "out" / "vote.html").as_uri())
    assert browser.execute_script(ANOTHER) == [True] * 7
    voter = browser.execute_script("vote('same'); return state.voter;")
    browser.refresh()
    assert browser.execute_script("return [state.voter, place];") == [voter, 1], "a page that was reloaded goes on"


def test_many_voters_are_no_more_photos(folders, ballot):
    """Where people prefer A on half of the photos and B on the others, no number of people makes a preference."""
    _, key = ballot
    for_a = [7, 1, 7, 1, 7, 1, 7, 7]  # of eight voters, photo by photo: 59 % of the votes
    votes = []
    for voter in range(8):
        sides = [{"a": p["left"], "b": p["right"]} for p in key["photos"]]
        given = ["left" if (voter < n) == (side["a"] == "a") else "right" for n, side in zip(for_a, sides, strict=True)]
        votes.append(votes_file(folders, key["ballot"], given, f"v{voter}.json"))
    found = tally(folders / "out" / "key.json", votes)
    assert (found.a, found.b) == (38, 26) and "no preference" in found.sentence()
    one = tally(folders / "out" / "key.json", [votes_file(folders, key["ballot"], ["left", *[""] * 7], "one.json")])
    assert "no preference" in one.sentence()


PRESSED = """
const press = more => document.dispatchEvent(new KeyboardEvent("keydown", {key: "1", bubbles: true, ...more}));
const before = JSON.stringify(state.votes);
press({ctrlKey: true}); press({metaKey: true}); press({repeat: true});
const after = JSON.stringify(state.votes);
press({});
return [before === after, JSON.stringify(state.votes) !== after];
"""


def test_a_key_that_is_held_down_and_a_shortcut_are_no_votes(folders, ballot, browser):
    browser.get((folders / "out" / "vote.html").as_uri())
    assert browser.execute_script(PRESSED) == [True, True]
