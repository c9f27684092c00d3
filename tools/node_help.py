"""Write the help pages and English texts of the ComfyUI nodes from the nodes' own descriptions.

    python tools/node_help.py     writes locales/en/nodeDefs.json and the tables in web/docs anew

The head of a page, up to its first table, is written by hand and stays. The Chinese tables come from
locales/zh/nodeDefs.json, which is written by hand.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES, LOCALES = ROOT / "web" / "docs", ROOT / "locales"
TITLES = {  # of the tables and their columns
    "en": ("## Inputs", "| Name | What it is | Default |", "## Outputs", "| Name | What it is |"),
    "zh": ("## 输入", "| 名称 | 说明 | 默认值 |", "## 输出", "| 名称 | 说明 |"),
}
Texts = dict[str, dict[str, Any]]


def english(nodes: list[type]) -> Texts:
    """Texts of the nodes by id, in the form of ComfyUI's nodeDefs.json."""
    return {schema.node_id: _english(schema) for schema in (node.define_schema() for node in nodes)}  # type: ignore[attr-defined]


def _english(schema: Any) -> dict[str, Any]:
    inputs = {socket.id: {"name": socket.id, "tooltip": socket.options["tooltip"]} for socket in schema.inputs}
    outputs = [{"name": s.options["display_name"], "tooltip": s.options["tooltip"]} for s in schema.outputs]
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": inputs,
        "outputs": {str(i): output for i, output in enumerate(outputs)},
    }


def tables(schema: Any, texts: dict[str, Any], language: str) -> str:
    """The inputs and outputs of a node as Markdown."""
    inputs, columns, outputs, fewer = TITLES[language]
    rows = [
        f"| {texts['inputs'][socket.id]['name']} | {texts['inputs'][socket.id]['tooltip']} | {_default(socket)} |"
        for socket in schema.inputs
    ]
    made = [f"| {output['name']} | {output['tooltip']} |" for output in texts["outputs"].values()]
    return "\n".join([inputs, "", columns, "|---|---|---|", *rows, "", outputs, "", fewer, "|---|---|", *made, ""])


def _default(socket: Any) -> str:
    return f"`{socket.options['default']}`" if socket.options.get("default", "") != "" else ""


def page_path(node_id: str, language: str) -> Path:
    """Where ComfyUI looks for a page: the language's own, else <id>.md."""
    return PAGES / f"{node_id}.md" if language == "en" else PAGES / node_id / f"{language}.md"


def page(schema: Any, texts: dict[str, Any], language: str) -> str:
    """The page of a node: its head as it is, or title and description if there is none yet; its tables anew."""
    path = page_path(schema.node_id, language)
    head = f"# {texts['display_name']}\n\n{texts['description']}\n\n"
    if path.exists():
        head = path.read_text(encoding="utf-8").split(TITLES[language][0])[0]
    return head + tables(schema, texts, language)


def read_texts(language: str) -> Texts:
    """locales/<language>/nodeDefs.json."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def nodes_of_the_pack() -> list[Any]:
    """The node classes, loaded among the tests' stand-ins for ComfyUI, whose folders of models are empty."""
    sys.path[:0] = [str(ROOT / "tests" / "nodes"), str(ROOT)]
    stand_ins = importlib.import_module("conftest")
    sys.modules.update(stand_ins.modules())
    stand_ins.load_pack()
    kinds = ("facerestore_models", "bfr_priors", "upscale_models", "facedetection")
    stand_ins.HOST.model_folders = {kind: [] for kind in kinds}
    return sys.modules[f"{stand_ins.ALIAS}.nodes"].NODES  # type: ignore[attr-defined]


def main() -> None:
    """Write everything."""
    nodes = nodes_of_the_pack()
    text = json.dumps(english(nodes), indent=2, ensure_ascii=False)
    (LOCALES / "en" / "nodeDefs.json").write_text(text + "\n", encoding="utf-8")
    for language in TITLES:
        texts = read_texts(language)
        for schema in (node.define_schema() for node in nodes):
            path = page_path(schema.node_id, language)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page(schema, texts[schema.node_id], language), encoding="utf-8")


if __name__ == "__main__":
    main()
