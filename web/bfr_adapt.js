// Shows what a node says (verdict, counts, cautions) below its widgets.
//
// The server also sends these texts while the graph runs. Pages that show those make a widget named SHOWN_BY_PAGE on
// the node, two lines high; it gives way to one with room for the whole text when the node is done. Other pages,
// ComfyUI's frontend 1.42 among them, show nothing without this.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const KEY = "bfr_text"; // of the outputs that a node shows, see nodes/host.py
const OURS = "bfr_text";
const SHOWN_BY_PAGE = "$$node-text-preview";
const TYPE = /^BFR_/; // of our nodes
// The text of a node, by its type, which stands in a saved workflow where a newer version has a value.
const LEFT_OVER = {
  BFR_FacesFromFolder: /^\d+ faces?(\n|$)/,
  BFR_Compare: /^columns: | is better: | best at 1: /,
};
const MIN_HEIGHT = 90, MAX_HEIGHT = 300; // of a node's text, in pixels of the graph; a longer one is scrolled
const LINE = 13, LETTER = 6.5, RIM = 40; // of its letters, and what a node needs around them

function widgetNamed(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

// The height that a text needs on a node of this width.
function heightOf(text, width) {
  const letters = Math.max(20, (width - RIM) / LETTER);
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0);
  return Math.min(MAX_HEIGHT, Math.max(MIN_HEIGHT, lines * LINE + RIM));
}

function textWidget(node, text) {
  const found = widgetNamed(node, OURS);
  if (found) return found;
  const withoutText = node.computeSize()[1];
  const { widget } = ComfyWidgets.STRING(node, OURS, ["STRING", { multiline: true }], app);
  widget.label = "";
  widget.serialize = false; // neither in saved workflows, whose values go by their order,
  widget.options.serialize = false; // nor in what is sent to the server
  widget.options.read_only = true;
  const element = widget.inputEl ?? widget.element;
  if (element) element.readOnly = true;
  const least = node.computeSize();
  const height = Math.max(node.size[1], withoutText + heightOf(text, node.size[0]), least[1]); // room that is there is used
  node.setSize([Math.max(node.size[0], least[0]), height]);
  return widget;
}

// As the page takes its own text away.
function removePagesText(node) {
  const place = node.widgets?.findIndex((widget) => widget.name === SHOWN_BY_PAGE) ?? -1;
  if (place < 0) return;
  node.widgets[place].onRemove?.();
  node.widgets.splice(place, 1);
}

function show(node, texts) {
  removePagesText(node);
  const text = texts.join("\n");
  textWidget(node, text).value = text;
  app.graph?.setDirtyCanvas(true, true);
}

function isOffered(widget, inputs) {
  const [kind, more] = inputs[widget.name];
  const values = widget.options?.values ?? (Array.isArray(kind) ? kind : more?.options);
  return Array.isArray(values) && values.includes(widget.value);
}

// Older pages saved a text behind the values. Where a value was added since, the text must not be taken for it.
// What a user typed is a name whatever it says, unless it is the last of fewer values than the node has now.
function dropLeftOvers(node, inputs, leftOver, saved) {
  (node.widgets ?? []).forEach((widget, place, widgets) => {
    const [kind, more] = inputs[widget.name] ?? [];
    const standard = more?.default;
    if (typeof widget.value !== "string") return;
    const isLast = Array.isArray(saved) && place === saved.length - 1;
    const isTyped = kind === "STRING" && !(isLast && widgets.slice(place + 1).some((later) => later.name in inputs));
    const isLeftOver = typeof standard === "string" && leftOver?.test(widget.value) && !isOffered(widget, inputs);
    if (typeof standard === "boolean" || (isLeftOver && !isTyped)) widget.value = standard;
  });
}

// The node that a page names "4", or "<id of a subgraph>:4".
function nodeNamed(name) {
  const parts = name.split(":");
  const root = app.rootGraph ?? app.graph;
  const graph = parts.length > 1 ? root?.subgraphs?.get(parts[0]) : root;
  return graph?.getNodeById?.(Number(parts.at(-1)));
}

app.registerExtension({
  name: "BFRAdapt.Texts",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!TYPE.test(nodeData.name)) return;
    const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
    const configured = nodeType.prototype.onConfigure;
    nodeType.prototype.onConfigure = function (info) {
      configured?.apply(this, arguments);
      dropLeftOvers(this, inputs, LEFT_OVER[nodeData.name], info?.widgets_values);
    };
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.[KEY]?.length) show(this, output[KEY]);
    };
  },
  // When a page brings outputs of an earlier time back, such as from its list of runs, no node is told.
  onNodeOutputsUpdated(outputs) {
    for (const [name, output] of Object.entries(outputs ?? {})) {
      const node = output?.[KEY]?.length && nodeNamed(name);
      if (node && TYPE.test(node.type)) show(node, output[KEY]);
    }
  },
});
