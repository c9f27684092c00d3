(() => {
  const dialog = document.querySelector("dialog");
  if (!dialog || !dialog.showModal) return;
  document.documentElement.classList.add("live");
  const stage = dialog.querySelector(".stage"), range = dialog.querySelector("input");
  const [right, left] = stage.querySelectorAll("img"), [pickLeft, pickRight] = dialog.querySelectorAll("select");
  let row = [];
  const cut = value => { range.value = value; stage.style.setProperty("--cut", range.value + "%"); };
  const show = () => {
    left.src = row[pickLeft.value].src; right.src = row[pickRight.value].src;
    left.alt = row[pickLeft.value].alt; right.alt = row[pickRight.value].alt;
    stage.style.setProperty("--ratio", row[pickRight.value].width / row[pickRight.value].height);
  };
  const open = picture => {
    const faces = picture.closest(".faces");
    row = [...faces.querySelectorAll("img")];
    dialog.querySelector("form span").textContent = faces.dataset.label;
    for (const pick of [pickLeft, pickRight])
      pick.replaceChildren(...row.map((face, i) => new Option(face.dataset.column, i)));
    const chosen = row.indexOf(picture);
    pickLeft.value = chosen === 0 ? 0 : chosen - 1;
    pickRight.value = chosen === 0 ? Math.min(1, row.length - 1) : chosen;
    cut(50); show(); dialog.showModal(); range.focus();
  };
  for (const picture of document.querySelectorAll(".faces img")) {
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.title = "Compare with its neighbour";
    picture.addEventListener("click", () => open(picture));
    picture.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(picture); }
    });
  }
  pickLeft.onchange = pickRight.onchange = show;
  range.oninput = () => cut(range.value);
  const drag = event => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    cut((event.clientX - box.left) / box.width * 100);
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  stage.addEventListener("dragstart", event => event.preventDefault());
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
})();
