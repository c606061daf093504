"use strict";
// A row's pictures are looked at through one window: where one is moved or enlarged, all are.
for (const row of document.querySelectorAll(".panes")) {
  const views = [...row.querySelectorAll(".view")];
  let factor = 1, x = 0, y = 0; // the window's corner, as shares of the picture
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.innerHTML =
    '<button type="button" aria-label="smaller">−</button><button type="button" aria-label="larger">+</button><output></output>';
  row.before(bar);
  const [smaller, larger] = bar.querySelectorAll("button");
  const show = () => {
    const most = 1 - 1 / factor;
    x = Math.min(Math.max(x, 0), most);
    y = Math.min(Math.max(y, 0), most);
    for (const view of views) {
      view.firstChild.style.transform = `scale(${factor}) translate(${-100 * x}%, ${-100 * y}%)`;
    }
    row.classList.toggle("close", factor > 1);
    bar.querySelector("output").textContent = `${factor}×`;
    smaller.disabled = factor === 1;
    larger.disabled = factor === 16;
  };
  // fx, fy: the place in the window that stays where it is
  const zoom = (to, fx = 0.5, fy = 0.5) => {
    x += fx / factor - fx / to;
    y += fy / factor - fy / to;
    factor = to;
    show();
  };
  smaller.addEventListener("click", () => zoom(factor / 2));
  larger.addEventListener("click", () => zoom(factor * 2));
  for (const view of views) {
    let from = null, moved = false;
    view.addEventListener("pointerdown", (event) => {
      from = [event.clientX, event.clientY];
      moved = false;
      if (factor > 1) view.setPointerCapture(event.pointerId);
    });
    view.addEventListener("pointermove", (event) => {
      if (!from) return;
      const [dx, dy] = [event.clientX - from[0], event.clientY - from[1]];
      if (!moved && Math.hypot(dx, dy) < 5) return;
      moved = true;
      if (factor === 1) return;
      x -= dx / view.clientWidth / factor;
      y -= dy / view.clientHeight / factor;
      from = [event.clientX, event.clientY];
      show();
    });
    view.addEventListener("pointerup", (event) => {
      if (from && !moved) {
        const box = view.getBoundingClientRect();
        const [fx, fy] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
        zoom(factor >= 8 ? 1 : factor * 2, fx, fy);
      }
      from = null;
    });
    view.addEventListener("pointercancel", () => (from = null));
  }
  show();
}
