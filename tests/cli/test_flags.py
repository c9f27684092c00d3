"""Flags that are made from settings: the short help, what it leaves out and still works, --set, and the list."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

import pytest

from bfr_core.adaptation.config import AdaptConfig
from bfr_core.cli.commands import build_parser, main
from bfr_core.cli.flags import (
    OPTIONS,
    SHOWN,
    asked,
    folder_from,
    name_from,
    path_from,
    restore_config,
    settings_from,
)
from bfr_core.restoration.restore import RestoreConfig
from bfr_core.restorers import load_restorer
from bfr_core.settings import setting_at, settings_of

ROOT = Path(__file__).parents[2]
# Every command and flag of version 0.1; none may go away.
OLD_FLAGS = {
    "adapt": (
        "--adversarial --album --aligned --anchor --batch-size --calls --clean-level --code --constrain-end "
        "--detector --device --eta --export-pth --factor --feature --first-look --gate --gate-tries --good "
        "--iterations --json --judged-on --l1 --low-memory --lr --micro-batch --min-face --minutes --mixed "
        "--num-steps --perceptual --precision --prior --rank --real --recipe --recompute --reference "
        "--restorer --run --sampler --seed --start --target-detail --texture --trainable --transplant"
    ),
    "faces": "--aligned --detector --json --min-face --restorer --run --seed --size",
    "targets": (
        "--calls --clean-level --constrain-end --device --eta --factor --gate --gate-tries --json --num-steps "
        "--precision --prior --recipe --reference --restorer --run --sampler --seed --start --target-detail"
    ),
    "finetune": (
        "--adversarial --aligned --anchor --batch-size --code --detector --device --export-pth --feature "
        "--gate --gate-tries --iterations --json --judged-on --l1 --low-memory --lr --micro-batch --min-face "
        "--minutes --perceptual --precision --prior --rank --real --recipe --recompute --restorer --run "
        "--seed --targets --texture --trainable --transplant"
    ),
    "restore": (
        "--again --aligned --batch-size --blend --detector --device --faces --fidelity --json --mask "
        "--min-face --numbers --out --precision --restorer --skip-existing --skip-sharp --strip-gps "
        "--threshold"
    ),
    "export": "--json --out",
    "demo": "--json --run",
    "degrade": "--json --kind --out --seed --strength",
    "ablate": (
        "--adversarial --anchor --batch-size --calls --clean --clean-levels --code --device --ends --eta "
        "--factors --feature --iterations --json --judged-on --l1 --limit --lr --micro-batch --minutes "
        "--num-steps --out --perceptual --precision --prior --rank --recompute --reference --restorer "
        "--sampler --seed --starts --target-detail --texture --trainable --transplant --tune"
    ),
    "bench": (
        "--adversarial --aligned --anchor --batch-size --calls --clean-level --code --constrain-end "
        "--detector --device --eta --faces --factor --feature --groups --hq --iterations --json --judged-on "
        "--l1 --lr --micro-batch --min-face --minutes --num-steps --out --perceptual --precision --prior "
        "--published --rank --reading --recompute --reference --reference-set --restorer --sampler --seed "
        "--sets --split --start --target-detail --texture --trainable --transplant"
    ),
    "weights": "--json --out",
    "verify-real": "--device --json --out",
    "ui": "--allow --auth --json --listen --port --runs",
    "inspect": "--json",
    "tone": "--json --out --strength",
    "vote": "--a --b --json --most --out --seed",
    "tally": "--json",
    "evaluate": "--clean --csv --factor --json --lq --plot --reference-set",
}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by name."""
    actions = build_parser()._actions
    return next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))


def read(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(list(words))


ADAPT = ("adapt", "photos", "--run", "run")


@pytest.mark.parametrize("command", OLD_FLAGS)
def test_every_flag_of_earlier_versions_still_works(command: str) -> None:
    known = {flag for action in parsers()[command]._actions for flag in action.option_strings}
    assert not set(OLD_FLAGS[command].split()) - known


def test_the_help_of_bfr_lists_every_command_in_a_group() -> None:
    text = build_parser().format_help()
    places = [
        text.index(f"\n  {name} ") for name in ("adapt", "restore", "ui", "weights", "inspect", "faces", "evaluate")
    ]
    assert places == sorted(places), "the main commands, then the stages, then the studies of the method"
    assert all(f"\n  {name} " in text for name in parsers())


def test_the_help_of_adapt_is_short_and_says_how_to_reach_the_rest() -> None:
    text = parsers()["adapt"].format_help()
    hidden = set(OPTIONS) - set(SHOWN)
    assert all(f"\n  {flag} " in text for flag in SHOWN)
    assert not [flag for flag in hidden if f"\n  {flag} " in text or f"[{flag}" in text] and len(hidden) > 20
    assert text.count("\n  --") <= 18 and "--set PATH=VALUE" in text and "bfr settings" in text


def test_set_changes_every_setting_that_a_flag_changes_and_more() -> None:
    restorer = load_restorer()
    words = ("--set", "finetune.ema=0.5", "--set", "targets.sampler.t_start=auto", "--set", "album.good=my old photos")
    config = settings_from(read(*ADAPT, *words), restorer)
    assert config.finetune.ema == 0.5 and config.targets.search == ("t_start",) and config.album.good == "my old photos"
    by_flag = settings_from(read(*ADAPT, "--iterations", "7", "--factor", "4"), restorer)
    by_path = settings_from(
        read(*ADAPT, "--set", "finetune.iterations=7", "--set", "targets.sampler.factor=4"), restorer
    )
    assert by_flag == by_path
    low = settings_from(read(*ADAPT, "--low-memory", "--set", "finetune.micro_batch=2"), restorer).finetune
    assert (low.trainable, low.micro_batch) == ("lora", 2), "what is set by hand counts more"
    assert settings_from(
        read(*ADAPT, "--set", "recipe=published", "--set", "finetune.perceptual=0"), restorer
    ).recipe == ("published")
    assert asked(read(*ADAPT, "--set", "restorer=mine.pth"))["restorer"] == "mine.pth"


NAMES_A_PATH = ("DIR", "FILE", "FOLDER", "PHOTOS", "NAME", "LQ", "RESTORED", "KEY", "VOTES")
ARGUMENTS_OF = {
    "restore": ["photos", "--out", "out"],
    "adapt": ["photos", "--run", "run"],
    "export": ["file", "--out", "out.pth"],
    "tally": ["key", "votes"],
    "evaluate": ["restored", "--csv", "table"],
    "ui": ["--allow", "photos"],
}


@pytest.mark.parametrize("command", OLD_FLAGS)
def test_every_path_is_read_in_one_way(command: str) -> None:
    actions = [action for action in parsers()[command]._actions if action.metavar in NAMES_A_PATH]
    assert not [action.dest for action in actions if action.type not in (path_from, name_from, folder_from)]
    assert not [action.dest for action in parsers()[command]._actions if action.type is Path]


@pytest.mark.parametrize(
    ("command", "place"),
    [(c, i) for c, words in ARGUMENTS_OF.items() for i, word in enumerate(words) if not word.startswith("--")],
)
def test_an_empty_path_is_not_the_current_folder(command: str, place: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = list(ARGUMENTS_OF[command])
    name = words[place - 1] if place and words[place - 1].startswith("--") else words[place].upper()
    words[place] = ""
    with pytest.raises(SystemExit) as ended:
        main([command, *words])
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and f"argument {name}: is empty; name a file or a folder" in said and "\n" not in said


@pytest.mark.parametrize("flag", ["--restorer=", "--prior=", "--set=restorer=", "--set=prior="])
def test_a_network_of_no_name_is_refused(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(["adapt", str(tmp_path), "--run", str(tmp_path / "run"), flag]))
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and f"{flag.removesuffix('=')}" in said.replace("--set ", "--set=")
    assert "is empty" in said and "\n" not in said


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    args = read("restore", "~/in", "--out=~/x", "--restorer=~/r.pth", "--background=~/b.pth", "--person=~")
    assert (args.photos, args.out, args.person) == (tmp_path / "in", tmp_path / "x", tmp_path)
    assert args.restorer == f"{tmp_path}/r.pth" and restore_config(args).background == f"{tmp_path}/b.pth"
    words = ("--prior=~/p", "--good", "~/g", "--set", "restorer=~/r.pth", "--set", "album.real=~/a")
    settings = asked(read(*ADAPT, *words))
    names = ("prior", "album.good", "restorer", "album.real")
    assert [settings[name] for name in names] == [f"{tmp_path}/{name}" for name in ("p", "g", "r.pth", "a")]
    assert read("restore", "in/~", "--out", "~nobody_of_this_name/x").out == Path("~nobody_of_this_name/x")


@pytest.mark.parametrize("out", ["solo.jpg", "solo.jpg/below/it"])
@pytest.mark.parametrize("command", ["restore", "tone", "degrade --kind sensor", "vote --a a --b b"])
def test_a_file_in_place_of_the_folder_of_results_is_one_line(
    command: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "solo.jpg").write_bytes(b"photo")
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), str(tmp_path), "--out", str(tmp_path / out)])
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and said.count("--out") == 1 and "\n" not in said
    assert f"{tmp_path / 'solo.jpg'}: is a file; name a folder" in said


@pytest.mark.parametrize("out", ["gone", "gone/below/it"])
@pytest.mark.parametrize("command", ["restore --out", "tone --out", "faces --run", "adapt --run"])
def test_a_broken_link_in_place_of_the_folder_is_one_line_that_says_where_it_leads(
    command: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "gone").symlink_to("elsewhere/gone")
    name, flag = command.split()
    status: object
    try:
        status = main([name, str(tmp_path / "photos"), flag, str(tmp_path / out)])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err.strip()
    assert status == 2 and "\n" not in said and "Errno" not in said
    assert f"{tmp_path / 'gone'}: is a link to elsewhere/gone, which leads nowhere" in said


def test_set_changes_how_photos_are_restored() -> None:
    config = restore_config(read("restore", "photos", "--out", "out", "--blend", "0.5", "--set", "match_colour=no"))
    assert (config.blend, config.match_colour, config.mask) == (0.5, False, "auto")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("finetune.steps=3", "there is no setting 'finetune.steps'"),
        ("finetune.lr=fast", "finetune.lr is 'fast'; it must be more than 0"),
        ("finetune.ema=1", "finetune.ema is 1.0; it must be 0 to less than 1"),
        ("finetune.lr", "path=value"),
        ("recipe=mine", "recipe is 'mine'; it must be recommended or published"),
    ],
)
def test_a_wrong_set_is_one_line_and_exit_2(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", str(tmp_path), "--run", str(tmp_path / "run"), "--set", text]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error and not (tmp_path / "run").exists()


def test_settings_lists_all_or_those_about_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--json"]) == 0
    paths = [one["path"] for one in json.loads(capsys.readouterr().out)["settings"]]
    assert paths == [one.path for config in (AdaptConfig, RestoreConfig) for one in settings_of(config)]
    assert main(["settings", "LANDMARKS"]) == 0
    said = capsys.readouterr().out
    assert "gate.most_moved=0.25 distances between the eyes  [0 or more]" in said and "finetune.lr" not in said
    assert main(["settings", "nothing of the kind"]) == 2
    assert "no setting has this word" in capsys.readouterr().err


def test_every_setting_says_in_full_sentences_what_it_is() -> None:
    for config in (AdaptConfig, RestoreConfig):
        for one in settings_of(config):
            assert one.meaning.endswith(".") and one.meaning[0].isupper() and len(one.meaning.split()) >= 3, one.path
            one.check(one.default)


def test_every_field_of_the_settings_is_a_setting() -> None:
    from bfr_core.adaptation.published import leaves

    assert [one.path for one in settings_of(AdaptConfig)] == list(leaves(AdaptConfig()))
    assert all(setting_at(AdaptConfig, path).path == path for path in OPTIONS.values())


def texts_of(path: Path) -> list[str]:
    """Every text of a Python file, joined ones whole."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_the_meaning_of_a_setting_stands_in_one_place() -> None:
    folders = [path for name in ("bfr_core", "nodes", "scripts") for path in (ROOT / name).rglob("*.py")]
    texts: list[str] = [" ".join(text.split()) for path in folders for text in texts_of(path)]
    meanings: dict[str, Any] = {
        one.meaning: one.path for config in (AdaptConfig, RestoreConfig) for one in settings_of(config)
    }
    for meaning, path in meanings.items():
        first = meaning.split(". ")[0].rstrip(".")
        found = [text for text in texts if first in text]
        assert len(found) == 1, f"the meaning of {path} stands in {len(found)} places: {found}"
