"use strict";
// Values under the pointer, read back from the drawn lines and the axes' ranges.
for (const svg of document.querySelectorAll(".chart svg[role]")) {
  const axis = (text) => {
    const [low, high, from, to, scale] = text.split(" ");
    const [l, h, f, t] = [low, high, from, to].map(Number);
    return (at) => {
      const v = l + ((at - f) / (t - f)) * (h - l);
      return scale === "log" ? 10 ** v : v;
    };
  };
  const [x, y] = [axis(svg.dataset.x), axis(svg.dataset.y)];
  let lines = null, cursor = null, tip = null;
  const points = (path) => path.getAttribute("d").slice(1).split("L").map((p) => p.split(" ").map(Number));
  const show = (event) => {
    lines ??= [...svg.querySelectorAll("path[data-name]")].map((p) => [p.dataset.name, points(p)]);
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const near = (list) => list.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    const found = lines.map(([name, list]) => [name, near(list)]);
    if (!found.length) return;
    const px = near(found.map((f) => f[1]))[0];
    if (!tip) {
      cursor = svg.appendChild(svg.querySelector("path").cloneNode());
      cursor.setAttribute("class", "cursor");
      tip = svg.parentNode.appendChild(document.createElement("div"));
      tip.className = "tip";
    }
    const height = svg.viewBox.baseVal.height;
    cursor.setAttribute("d", `M${px} 8V${height - 36}`);
    const { abscissa } = svg.dataset;
    const head = `${abscissa}: ${abscissa === "step" ? Math.round(x(px)) : x(px).toPrecision(3)}`;
    const rows = found.filter((f) => Math.abs(f[1][0] - px) < 8);
    tip.textContent = [head, ...rows.map(([name, p]) => `${name}: ${Number(y(p[1]).toPrecision(4))}`)].join("\n");
    const left = (px / svg.viewBox.baseVal.width) * box.width;
    const right = left > box.width / 2;
    tip.style.left = right ? "" : `${left + 18}px`;
    tip.style.right = right ? `${box.width - left + 18}px` : "";
    tip.style.top = `${svg.getBoundingClientRect().top - svg.parentNode.getBoundingClientRect().top + 6}px`;
  };
  const hide = () => {
    tip?.remove();
    cursor?.remove();
    tip = cursor = null;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

// Pictures to the full window, then by whole factors, pixel by pixel.
const dialog = document.body.appendChild(document.createElement("dialog"));
dialog.innerHTML =
  '<div class="bar"><span></span><button type="button" aria-label="smaller">−</button>' +
  '<button type="button" aria-label="larger">+</button><button type="button" aria-label="close">×</button></div>' +
  '<div class="box"><img alt=""></div>';
const [caption, box, large] = ["span", ".box", "img"].map((s) => dialog.querySelector(s));
const [smaller, larger, close] = dialog.querySelectorAll("button");
let factor = 1;
const resize = (to, fx = 0.5, fy = 0.5) => {
  const fit = box.clientWidth / large.naturalWidth;
  factor = Math.min(Math.max(to, Math.min(fit, 1)), 16);
  large.style.width = `${factor * large.naturalWidth}px`;
  box.scrollLeft = fx * large.offsetWidth - box.clientWidth / 2;
  box.scrollTop = fy * large.offsetHeight - box.clientHeight / 2;
};
const up = () => (factor < 1 ? 1 : 2 * Math.floor(factor));
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", async () => {
    const picture = button.querySelector("img");
    large.src = picture.src;
    large.alt = caption.textContent = picture.alt;
    dialog.showModal();
    await large.decode().catch(() => {});
    resize(box.clientWidth / large.naturalWidth < 2 ? box.clientWidth / large.naturalWidth : 2);
    box.scrollTo(0, 0);
  });
}
large.addEventListener("click", (event) => {
  const at = large.getBoundingClientRect();
  resize(factor >= 8 ? 0 : up(), (event.clientX - at.left) / at.width, (event.clientY - at.top) / at.height);
});
larger.addEventListener("click", () => resize(up()));
smaller.addEventListener("click", () => resize(factor > 1 ? Math.ceil(factor / 2) : 0));
close.addEventListener("click", () => dialog.close());
