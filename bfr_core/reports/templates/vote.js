const votes = JSON.parse(localStorage.getItem(DATA.ballot) || "null") || DATA.photos.map(() => "");
let place = votes.indexOf("");
if (place < 0) place = votes.length;
const element = id => document.getElementById(id);
function show() {
  const done = place >= votes.length;
  element("pictures").hidden = done;
  element("pictures").style.display = done ? "none" : "";
  element("end").hidden = !done;
  element("place").textContent = done ? "" : `Photo ${place + 1} of ${votes.length}`;
  if (done) {
    const file = new Blob([JSON.stringify({ballot: DATA.ballot, votes: votes})], {type: "application/json"});
    element("save").href = URL.createObjectURL(file);
    element("save").download = `votes-${Math.random().toString(36).slice(2, 10)}.json`;
  } else {
    ["damaged", "left", "right"].forEach((id, i) => { element(id).src = DATA.photos[place][i]; });
  }
}
function vote(choice) {
  if (place >= votes.length) return;
  votes[place] = choice;
  localStorage.setItem(DATA.ballot, JSON.stringify(votes));
  place += 1;
  show();
}
document.querySelectorAll("[data-vote]").forEach(b => b.addEventListener("click", () => vote(b.dataset.vote)));
element("back").addEventListener("click", () => { place = Math.max(0, place - 1); show(); });
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return; // a key held down, or a shortcut
  const choice = {1: "left", 2: "right", 3: "same"}[event.key];
  if (choice) vote(choice);
});
show();
