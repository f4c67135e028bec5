"use strict";
// The page is complete without this script, which sorts and filters its tables and changes the rate of the gallery.

const FEWEST = 6; // rows of a table that gets a filter

function number(text) {
  return /^[+−-]?\d/.test(text) ? parseFloat(text.replace("−", "-")) : NaN;
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map(row => ({ row, text: row.cells[column].textContent.trim() }));
  const known = keyed.filter(({ text }) => text && text !== "–");
  const unknown = keyed.filter(each => !known.includes(each)); // last in both directions
  const numeric = known.every(({ text }) => !isNaN(number(text)));
  known.sort((a, b) => numeric ? number(a.text) - number(b.text) : a.text.localeCompare(b.text, "en", { numeric: true }));
  if (descending) known.reverse();
  body.append(...known.concat(unknown).map(({ row }) => row));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.ariaSort === "ascending";
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.ariaSort = descending ? "descending" : "ascending";
      sort(table, column, descending);
    });
  });
}

function makeFilterable(table) {
  const field = document.createElement("input");
  field.type = "search";
  field.className = "filter";
  field.placeholder = "Filter rows";
  field.ariaLabel = "Filter rows by words in them";
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
  table.parentElement.before(field);
}

for (const table of document.querySelectorAll(".scroll > table")) {
  const rows = table.tBodies[0].rows.length;
  if (rows > 1) makeSortable(table);
  if (rows >= FEWEST) makeFilterable(table);
}

function judge(gallery, rate) {
  const [, threshold, line] = JSON.parse(gallery.dataset.decisions).find(([percent]) => percent === rate);
  const [shownRate, shownLine] = gallery.querySelectorAll(".counts > span");
  shownRate.textContent = `${rate} %`;
  shownLine.textContent = line;
  for (const figure of gallery.querySelectorAll("[data-score]")) {
    const above = Number(figure.dataset.score) > threshold;
    const verdict = threshold === null ? "undecided" : above ? "bad" : "good";
    figure.querySelector("b").textContent = verdict;
    figure.classList.toggle("wrong", verdict === (figure.dataset.bad === "1" ? "good" : "bad"));
  }
}

const slider = document.getElementById("rate");
if (slider) {
  slider.parentElement.hidden = false;
  const judgeAll = () => {
    slider.nextElementSibling.textContent = `${slider.value} %`;
    document.querySelectorAll("[data-decisions]").forEach(gallery => judge(gallery, Number(slider.value)));
  };
  slider.addEventListener("input", judgeAll);
  judgeAll(); // a browser keeps the position of a slider when the page is loaded again
}
