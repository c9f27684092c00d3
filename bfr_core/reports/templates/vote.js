// Where the browser lets a page keep nothing, the votes last as long as the page is open.
function kept() {
  try { return JSON.parse(localStorage.getItem(DATA.ballot) || "null"); } catch { return null; }
}
function keep() {
  try { localStorage.setItem(DATA.ballot, JSON.stringify(state)); } catch { /* see above */ }
}
function newVoter() {
  return {voter: Math.random().toString(36).slice(2, 12), votes: DATA.photos.map(() => "")};
}
let state = kept();
if (!state || !state.voter || !Array.isArray(state.votes) || state.votes.length !== DATA.photos.length) state = newVoter();
let place = state.votes.indexOf("");
if (place < 0) place = state.votes.length;
const element = id => document.getElementById(id);
function show() {
  const done = place >= state.votes.length;
  element("pictures").hidden = done;
  element("pictures").style.display = done ? "none" : "";
  element("end").hidden = !done;
  element("place").textContent = done ? "" : `Photo ${place + 1} of ${state.votes.length}`;
  if (done) {
    const content = {ballot: DATA.ballot, voter: state.voter, votes: state.votes};
    const file = new Blob([JSON.stringify(content)], {type: "application/json"});
    element("save").href = URL.createObjectURL(file);
    element("save").download = `votes-${state.voter}.json`;
    element("next").disabled = !state.saved; // what nobody has saved is not given up for another's votes
  } else {
    ["damaged", "left", "right"].forEach((id, i) => { element(id).src = DATA.photos[place][i]; });
  }
}
function vote(choice) {
  if (place >= state.votes.length) return;
  state.votes[place] = choice;
  state.saved = false;
  keep();
  place += 1;
  show();
}
document.querySelectorAll("[data-vote]").forEach(b => b.addEventListener("click", () => vote(b.dataset.vote)));
element("back").addEventListener("click", () => { place = Math.max(0, place - 1); show(); });
element("save").addEventListener("click", () => { state.saved = true; keep(); element("next").disabled = false; });
element("next").addEventListener("click", () => { state = newVoter(); keep(); place = 0; show(); });
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return; // a key held down, or a shortcut
  const choice = {1: "left", 2: "right", 3: "same"}[event.key];
  if (choice) vote(choice);
});
show();
