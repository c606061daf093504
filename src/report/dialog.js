"use strict";
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
