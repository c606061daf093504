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
