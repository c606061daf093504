"use strict";
// The table of every picture: by any column, the worst first, the best at a second click; of one method or of all.
for (const table of document.querySelectorAll(".sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const badness = { more: (v) => -v, less: (v) => v, one: (v) => Math.abs(Math.log(v)) };
  for (const [column, head] of heads.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const { better } = head.dataset;
      const first = better ? "descending" : "ascending";
      const second = better ? "ascending" : "descending";
      const order = head.ariaSort === first ? second : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const key = (row) => {
        const text = row.cells[column].textContent;
        if (!better) return text;
        const value = badness[better](Number(text));
        return Number.isNaN(value) ? -Infinity : value; // a figure that is not there
      };
      const compare = (a, b) => (better ? (a > b) - (a < b) : a.localeCompare(b, undefined, { numeric: true }));
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort((a, b) => (order === "ascending" ? compare(a[0], b[0]) : compare(b[0], a[0])));
      body.append(...rows.map((row) => row[1]));
    });
  }
  const choice = document.querySelector(".choice select");
  choice?.addEventListener("change", () => {
    for (const row of body.rows) row.hidden = choice.value !== "" && row.cells[1].textContent !== choice.value;
  });
}
